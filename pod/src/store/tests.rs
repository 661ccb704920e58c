//! The store against a real directory.

use super::*;

fn config(id: &str, name: &str) -> Config {
    Config {
        version: config::CONFIG_VERSION,
        id: id.to_owned(),
        name: name.to_owned(),
        created: 0,
        command: vec!["true".to_owned()],
        env: Vec::new(),
        cwd: "/".to_owned(),
        user: None,
        umask: 0o22,
        hostname: name.to_owned(),
        machine_id: id.to_owned(),
        names: NamesChoice::Auto,
        net: Net::Shared,
        base: Base::Host,
        volumes: Vec::new(),
        publish: Vec::new(),
        stdin: false,
        tty: false,
        window: None,
        memory: None,
        pids: None,
        mask: Mask::Default,
        image: None,
    }
}

#[test]
fn names_are_unique_and_pods_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("new/root")).unwrap();
    store.create(&config("0123456789ab", "web")).unwrap();
    store.create(&config("0123ffffffff", "db")).unwrap();
    let taken = store.create(&config("aaaaaaaaaaaa", "web")).unwrap_err();
    assert!(taken.to_string().contains("taken"), "{taken}");
    assert_eq!(store.find("web").unwrap().id, "0123456789ab");
    assert_eq!(store.find("01234").unwrap().id, "0123456789ab");
    assert!(
        store
            .find("0123")
            .unwrap_err()
            .to_string()
            .contains("more than one")
    );
    assert!(store.find("we").is_err());
    assert_eq!(store.list().unwrap().len(), 2);
}

#[test]
fn a_running_pod_without_a_holder_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let pod = store.create(&config("0123456789ab", "web")).unwrap();
    pod.write_state(&State::new(Phase::Running).unwrap())
        .unwrap();
    let held = pod.hold().unwrap();
    assert_eq!(pod.state().unwrap().phase, Phase::Running);
    drop(held);
    assert_eq!(pod.state().unwrap().phase, Phase::Lost);
    pod.until_let_go().unwrap();
}

#[test]
fn what_is_written_is_private_and_whole() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("root")).unwrap();
    let pod = store.create(&config("0123456789ab", "web")).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&pod.dir), 0o700);
    assert_eq!(mode(&pod.path("state.json")), 0o600);
    assert_eq!(fs::read_dir(&pod.dir).unwrap().count(), 2);
}
