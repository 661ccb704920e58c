//! Who a program runs as: `-u user[:group]`, looked up in the pod's own /etc/passwd and /etc/group.
//!
//! The files are read directly (passwd(5), group(5)): the name service of the C library would load
//! libraries of the pod into init.

use std::fs;

use anyhow::Result;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

use crate::failure::{Failure, Hinted};

/// What the environment of a program says about its user.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Home {
    name: String,
    directory: String,
    shell: String,
}

#[derive(Debug, PartialEq, Eq)]
struct Account {
    uid: u32,
    gid: u32,
    home: Home,
}

impl Home {
    /// The variables login(1) sets.
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        vec![
            pair("HOME", &self.directory),
            pair("USER", &self.name),
            pair("LOGNAME", &self.name),
            pair("SHELL", &self.shell),
        ]
    }
}

/// The home of the user init runs as.
pub(super) fn home_of_current() -> Home {
    let uid = Uid::current().as_raw();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    account(&passwd, &uid.to_string()).map_or_else(|| nobody(uid).home, |account| account.home)
}

/// Sheds the caller's user, group and supplementary groups for those of `user[:group]`.
pub(super) fn become_user(user: &str) -> Result<Home> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let (account, gid) = resolve(user, &passwd, &groups)?;
    let others: Vec<Gid> = supplementary(&account.home.name, &groups)
        .into_iter()
        .chain([gid])
        .map(Gid::from_raw)
        .collect();
    if setgroups(&others).is_err() {
        // In a user namespace with one mapped id there are no groups to change to (user_namespaces(7)).
        tracing::debug!("supplementary groups stay as they are");
    }
    let hint = "without privilege a pod has other users only where newuidmap is installed and /etc/subuid has a range for you";
    setgid(Gid::from_raw(gid)).hinted(format!("become group {gid}"), hint)?;
    setuid(Uid::from_raw(account.uid)).hinted(format!("become user {user}"), hint)?;
    Ok(account.home)
}

fn resolve(user: &str, passwd: &str, groups: &str) -> Result<(Account, u32), Failure> {
    let (name, group) = user
        .split_once(':')
        .map_or((user, None), |(name, group)| (name, Some(group)));
    let unknown = |kind: &str, name: &str| {
        Failure::new(format!("no {kind} {name} in the pod")).hint(format!(
            "the pod's own /etc/{} is used; a number always works",
            if kind == "user" { "passwd" } else { "group" }
        ))
    };
    let known = account(passwd, name).or_else(|| name.parse().ok().map(nobody));
    let known = known.ok_or_else(|| unknown("user", name))?;
    let gid = match group {
        Some(group) => gid_of(groups, group).ok_or_else(|| unknown("group", group))?,
        None => known.gid,
    };
    Ok((known, gid))
}

fn nobody(uid: u32) -> Account {
    let home = Home {
        name: uid.to_string(),
        directory: "/".to_owned(),
        shell: "/bin/sh".to_owned(),
    };
    Account { uid, gid: 0, home }
}

/// The account with a name or a number.
fn account(passwd: &str, wanted: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let field: Vec<&str> = line.split(':').collect();
        let &[name, _, uid, gid, _, directory, shell] = field.as_slice() else {
            return None;
        };
        if name != wanted && uid != wanted {
            return None;
        }
        let shell = if shell.is_empty() { "/bin/sh" } else { shell };
        let home = Home {
            name: name.to_owned(),
            directory: directory.to_owned(),
            shell: shell.to_owned(),
        };
        Some(Account {
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home,
        })
    })
}

fn gid_of(groups: &str, wanted: &str) -> Option<u32> {
    let named = groups.lines().find_map(|line| {
        let mut field = line.split(':');
        (field.next() == Some(wanted))
            .then(|| field.nth(1)?.parse().ok())
            .flatten()
    });
    named.or_else(|| wanted.parse().ok())
}

fn supplementary(name: &str, groups: &str) -> Vec<u32> {
    let member = |line: &str| {
        let mut field = line.split(':');
        let gid = field.nth(2)?.parse().ok()?;
        field
            .next()?
            .split(',')
            .any(|member| member == name)
            .then_some(gid)
    };
    groups.lines().filter_map(member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\nredis:x:101:104::/var/lib/redis:\nbroken\n";
    const GROUPS: &str = "root:x:0:\nredis:x:104:\nssl:x:110:www,redis\n";

    #[test]
    fn names_and_numbers_are_resolved() {
        let (account, gid) = resolve("redis", PASSWD, GROUPS).unwrap();
        assert_eq!(
            (account.uid, gid, account.home.shell.as_str()),
            (101, 104, "/bin/sh")
        );
        assert_eq!(resolve("101:ssl", PASSWD, GROUPS).unwrap().1, 110);
        assert_eq!(
            resolve("4242:77", PASSWD, GROUPS).unwrap(),
            (nobody(4242), 77)
        );
        assert_eq!(supplementary("redis", GROUPS), [110]);
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert!(
            resolve("mary", PASSWD, GROUPS)
                .unwrap_err()
                .to_string()
                .contains("no user mary")
        );
        assert!(
            resolve("root:staff", PASSWD, GROUPS)
                .unwrap_err()
                .to_string()
                .contains("no group staff")
        );
    }
}
