//! A zone seen from inside the server's process: the directory without a question over the network.

use std::{fmt, sync::Arc};

use hickory_proto::rr::{LowerName, Name, RData, Record, RecordType};
use tokio::sync::watch;

use crate::{
    Entry, PodName, Result, Role, ZoneName,
    directory::{Names, parse_epoch, parse_placement},
    zone::{Snapshot, Zone},
};

/// Reads one zone of a running [`crate::Server`]; each call sees one state of the zone, whole.
#[derive(Clone)]
pub struct ZoneView {
    zone: Arc<Zone>,
}

impl ZoneView {
    pub(crate) fn new(zone: Arc<Zone>) -> Self {
        Self { zone }
    }

    /// Name of the zone.
    #[must_use]
    pub fn name(&self) -> &ZoneName {
        self.zone.name()
    }

    /// Whether this server decides on the zone or copies it.
    #[must_use]
    pub fn role(&self) -> Role {
        self.zone.role()
    }

    /// Serial of the SOA; 0 for a copy that never arrived.
    #[must_use]
    pub fn serial(&self) -> u32 {
        self.zone.snapshot().serial
    }

    /// Tells each change by the new serial.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u32> {
        self.zone.watch()
    }

    /// What the zone says about a pod; `None` for a name that is no pod's.
    #[must_use]
    pub fn pod(&self, pod: &PodName) -> Option<Entry> {
        entry(
            &self.zone.snapshot(),
            &Names::new(self.zone.name(), pod).ok()?,
        )
    }

    /// All pods by name.
    #[must_use]
    pub fn pods(&self) -> Vec<(PodName, Entry)> {
        let snapshot = self.zone.snapshot();
        let depth = self.zone.origin().num_labels() + 1;
        let owners = snapshot.records.iter().filter(|(key, _)| {
            key.record_type == RecordType::TXT && key.name.num_labels() == depth
        });
        let read = |name: &LowerName| {
            let label = Name::from(name)
                .iter()
                .next()
                .map(|label| String::from_utf8_lossy(label).into_owned())?;
            let pod = PodName::new(&label).ok()?;
            let names = Names::new(self.zone.name(), &pod).ok()?;
            Some((pod, entry(&snapshot, &names)?))
        };
        owners.filter_map(|(key, _)| read(&key.name)).collect()
    }

    /// All records in canonical order, in the text form of zone files (RFC 1035 section 5).
    #[must_use]
    pub fn dump(&self) -> Vec<String> {
        self.zone
            .snapshot()
            .records
            .records()
            .map(|record: Record| record.to_string())
            .collect()
    }

    /// Number of sets of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.zone.snapshot().records.len()
    }

    /// Whether nothing is in the zone (a copy that never arrived).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until the serial is at least `serial`.
    pub async fn wait_for(&self, serial: u32) -> Result<()> {
        let mut changes = self.zone.watch();
        let reached = changes
            .wait_for(|now| *now == serial || crate::zone::update::is_newer(*now, serial))
            .await;
        reached
            .map(drop)
            .map_err(|_| crate::Error::Serve("the zone is closed".to_owned()))
    }
}

impl fmt::Debug for ZoneView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZoneView")
            .field("name", self.name())
            .field("serial", &self.serial())
            .finish_non_exhaustive()
    }
}

fn entry(snapshot: &Snapshot, names: &Names) -> Option<Entry> {
    let set = |name: &Name, rtype| {
        let set = snapshot.records.get(&LowerName::new(name), rtype);
        set.map_or_else(Vec::new, |set| set.data.clone())
    };
    let epoch = parse_epoch(&set(&names.host, RecordType::TXT)).ok()?;
    let addresses: Vec<RData> = [RecordType::A, RecordType::AAAA]
        .into_iter()
        .flat_map(|rtype| set(&names.host, rtype))
        .collect();
    let placement = parse_placement(&addresses, &set(&names.index, RecordType::TXT)).ok()?;
    Some(Entry { epoch, placement })
}
