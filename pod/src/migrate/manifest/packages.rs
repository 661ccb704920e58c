//! Debian's packages: which one owns a file, and what it depends on (dpkg(1), deb-control(5)).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The packages of a root; none where there is no dpkg.
#[derive(Debug, Default)]
pub(super) struct Packages {
    /// Package by path.
    owners: BTreeMap<PathBuf, String>,
    /// Paths by package.
    files: BTreeMap<String, Vec<PathBuf>>,
    /// For each package what it needs: alternatives, of which one suffices.
    needs: BTreeMap<String, Vec<Vec<String>>>,
    /// Packages by the names they have or provide.
    providers: BTreeMap<String, BTreeSet<String>>,
    /// Directories of the root that are links into /usr.
    merged: Vec<PathBuf>,
}

impl Packages {
    /// Reads dpkg's database.
    ///
    /// # Errors
    /// A file of it that cannot be read.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut packages = Self {
            merged: merged(root),
            ..Self::default()
        };
        let status = root.join("var/lib/dpkg/status");
        let Ok(text) = fs::read_to_string(&status) else {
            return Ok(packages);
        };
        for stanza in text.split("\n\n") {
            packages.stanza(stanza);
        }
        let info = root.join("var/lib/dpkg/info");
        for entry in fs::read_dir(&info)
            .with_context(|| format!("list {}", info.display()))?
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(package) = name.strip_suffix(".list") {
                packages.list(package.split(':').next().unwrap_or(package), &entry.path())?;
            }
        }
        Ok(packages)
    }

    fn stanza(&mut self, stanza: &str) {
        let field = |name: &str| {
            stanza
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        let Some(package) =
            field("Package").filter(|_| field("Status").is_some_and(|s| s.ends_with(" installed")))
        else {
            return;
        };
        let depends = [field("Pre-Depends"), field("Depends")]
            .into_iter()
            .flatten()
            .flat_map(relations)
            .collect();
        self.needs.insert(package.to_owned(), depends);
        let provided = field("Provides").into_iter().flat_map(relations).flatten();
        for name in provided.chain([package.to_owned()]) {
            self.providers
                .entry(name)
                .or_default()
                .insert(package.to_owned());
        }
    }

    fn list(&mut self, package: &str, path: &Path) -> Result<()> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        for line in text.lines() {
            let path = self.settled(Path::new(line));
            self.owners.insert(path.clone(), package.to_owned());
            self.files.entry(package.to_owned()).or_default().push(path);
        }
        Ok(())
    }

    /// A path of the list where it really is: /lib/x lies in /usr/lib where the two are merged.
    fn settled(&self, path: &Path) -> PathBuf {
        match self
            .merged
            .iter()
            .any(|merged| path.starts_with(merged) && path != merged)
        {
            true => Path::new("/usr").join(path.strip_prefix("/").unwrap_or(path)),
            false => path.to_owned(),
        }
    }

    /// The package that owns a file.
    pub(super) fn owner(&self, path: &Path) -> Option<&str> {
        self.owners.get(path).map(String::as_str)
    }

    /// Every path of these packages and of those they depend on; directories among them.
    pub(super) fn closure(&self, packages: BTreeSet<&str>) -> BTreeSet<PathBuf> {
        let mut seen: BTreeSet<&str> = packages.clone();
        let mut ahead: Vec<&str> = packages.into_iter().collect();
        while let Some(package) = ahead.pop() {
            for need in self.needs.get(package).into_iter().flatten() {
                let provider = need
                    .iter()
                    .find_map(|name| self.providers.get(name)?.first());
                ahead.extend(
                    provider
                        .map(String::as_str)
                        .filter(|name| seen.insert(name)),
                );
            }
        }
        seen.iter()
            .filter_map(|package| self.files.get(*package))
            .flatten()
            .cloned()
            .collect()
    }
}

fn merged(root: &Path) -> Vec<PathBuf> {
    let names = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"].into_iter();
    let linked = |name: &&str| {
        fs::read_link(root.join(name)).is_ok_and(|to| to.ends_with(Path::new("usr").join(name)))
    };
    names
        .filter(linked)
        .map(|name| Path::new("/").join(name))
        .collect()
}

/// `a (>= 1) | b, c:any` as alternatives of names.
fn relations(field: &str) -> Vec<Vec<String>> {
    let name = |text: &str| {
        text.trim()
            .split([' ', '(', ':', '['])
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    field
        .split(',')
        .map(|one| one.split('|').map(name).collect())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_followed_through_alternatives_and_provides() {
        let root = tempfile::tempdir().unwrap();
        let info = root.path().join("var/lib/dpkg/info");
        fs::create_dir_all(&info).unwrap();
        fs::create_dir_all(root.path().join("usr/lib")).unwrap();
        std::os::unix::fs::symlink("usr/lib", root.path().join("lib")).unwrap();
        let status = "Package: app\nStatus: install ok installed\nDepends: absent | liba (>= 1:2), virtual:any\n\n\
            Package: liba\nStatus: install ok installed\nPre-Depends: app\n\n\
            Package: real\nStatus: install ok installed\nProvides: virtual (= 3)\n\n\
            Package: absent\nStatus: deinstall ok config-files\n\n\
            Package: other\nStatus: install ok installed\n";
        fs::write(root.path().join("var/lib/dpkg/status"), status).unwrap();
        for (package, path) in [
            ("app", "/usr/bin/app"),
            ("liba:amd64", "/lib/a.so"),
            ("real", "/usr/lib/r.so"),
            ("other", "/o"),
        ] {
            fs::write(info.join(format!("{package}.list")), format!("{path}\n")).unwrap();
        }
        let packages = Packages::read(root.path()).unwrap();
        assert_eq!(packages.owner(Path::new("/usr/lib/a.so")), Some("liba"));
        let all: Vec<_> = packages
            .closure(BTreeSet::from(["app"]))
            .into_iter()
            .map(|p| p.display().to_string())
            .collect();
        assert_eq!(all, ["/usr/bin/app", "/usr/lib/a.so", "/usr/lib/r.so"]);
    }
}
