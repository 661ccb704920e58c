//! Update messages (RFC 2136 section 2).

use hickory_proto::{
    op::{Message, OpCode, Query},
    rr::{DNSClass, Name, RData, Record, RecordType},
};

use crate::ZoneName;

/// Builds one update of `zone`.
pub(crate) struct Update {
    message: Message,
    zone: ZoneName,
}

impl Update {
    pub(crate) fn of(zone: &ZoneName) -> Self {
        let mut message = Message::query();
        message.metadata.op_code = OpCode::Update;
        message.metadata.recursion_desired = false;
        message.add_query(Query::query(zone.as_name().clone(), RecordType::SOA));
        Self {
            message,
            zone: zone.clone(),
        }
    }

    fn bare(name: &Name, rtype: RecordType, class: DNSClass) -> Record {
        let mut record = Record::update0(name.clone(), 0, rtype).into_record_of_rdata();
        record.dns_class = class;
        record
    }

    /// Prerequisite: no record has this name (section 2.4.5).
    pub(crate) fn if_unused(mut self, name: &Name) -> Self {
        self.message
            .add_answer(Self::bare(name, RecordType::ANY, DNSClass::NONE));
        self
    }

    /// Prerequisite: the set is exactly this one (section 2.4.2), or there is none (section 2.4.3).
    pub(crate) fn if_set(mut self, name: &Name, rtype: RecordType, data: &[RData]) -> Self {
        if data.is_empty() {
            self.message
                .add_answer(Self::bare(name, rtype, DNSClass::NONE));
        }
        for data in data {
            self.message
                .add_answer(Record::from_rdata(name.clone(), 0, data.clone()));
        }
        self
    }

    /// Deletes a set (section 2.5.2).
    pub(crate) fn delete_set(mut self, name: &Name, rtype: RecordType) -> Self {
        self.message
            .add_authority(Self::bare(name, rtype, DNSClass::ANY));
        self
    }

    /// Deletes one record (section 2.5.4).
    pub(crate) fn delete(mut self, mut record: Record) -> Self {
        (record.ttl, record.dns_class) = (0, DNSClass::NONE);
        self.message.add_authority(record);
        self
    }

    /// Adds records (section 2.5.1).
    pub(crate) fn add(mut self, records: impl IntoIterator<Item = Record>) -> Self {
        self.message
            .add_authorities(records.into_iter().collect::<Vec<_>>());
        self
    }

    pub(crate) fn zone(&self) -> &ZoneName {
        &self.zone
    }

    pub(crate) fn into_message(self) -> Message {
        self.message
    }
}
