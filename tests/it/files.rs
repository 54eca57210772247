//! Whom the files of a node are for: its user alone, and one process at a time, by whatever name.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::support::process::{Gateway, Home};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode()
        & 0o777
}

fn all_private(folder: &Path) {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        assert_eq!(mode(&entry.path()), 0o600, "{}", entry.path().display());
        names.push(entry.file_name().into_string().expect("UTF-8"));
    }
    for name in ["campanile.db", "campanile.db-wal", "campanile.db-shm", "campanile.lock"] {
        assert!(names.iter().any(|known| known == name), "{name} in {names:?}");
    }
}

const CARELESS: [&str; 4] = ["sh", "-c", "umask 0; exec \"$@\"", "sh"];

#[tokio::test]
async fn the_data_is_for_its_user_alone_whatever_the_umask_and_however_it_came_to_be() {
    let home = Home::new(None).with("CAMPANILE_API_KEY", "");
    let gateway = Gateway::start_under(&home, &CARELESS).await;
    assert_eq!(mode(&home.data()), 0o700);
    all_private(&home.data());
    assert!(home.data().join("secrets.toml").exists(), "one was generated");
    gateway.stop().await;

    for entry in fs::read_dir(home.data()).expect("a folder") {
        fs::set_permissions(entry.expect("an entry").path(), Permissions::from_mode(0o644)).expect("ours");
    }
    fs::set_permissions(home.data(), Permissions::from_mode(0o755)).expect("ours");
    let gateway = Gateway::start_under(&home, &CARELESS).await;
    assert_eq!(mode(&home.data()), 0o700);
    all_private(&home.data());

    let copy = home.data().join("copy.db");
    let backup = "umask 0; exec \"$@\"";
    let made = Command::new("sh")
        .args(["-c", backup, "sh", env!("CARGO_BIN_EXE_campanile"), "backup"])
        .arg(&copy)
        .arg("--data-dir")
        .arg(home.data())
        .status()
        .expect("it runs");
    assert!(made.success());
    all_private(&home.data());
    gateway.stop().await;
}

#[tokio::test]
async fn a_file_that_the_address_names_is_as_private_but_its_folder_may_be_shared() {
    let shared = tempfile::tempdir().expect("a folder");
    fs::set_permissions(shared.path(), Permissions::from_mode(0o755)).expect("ours");
    let file = shared.path().join("events.db");
    let home = Home::new(Some(format!("sqlite:{}", file.display())));
    let gateway = Gateway::start_under(&home, &CARELESS).await;
    assert_eq!(mode(shared.path()), 0o755);
    for name in ["events.db", "events.db-wal", "events.db-shm"] {
        assert_eq!(mode(&shared.path().join(name)), 0o600, "{name}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_folder_that_is_made_for_a_file_is_for_its_user_alone() {
    let shared = tempfile::tempdir().expect("a folder");
    let file = shared.path().join("made/here/events.db");
    let home = Home::new(Some(format!("sqlite:{}", file.display())));
    let gateway = Gateway::start_under(&home, &CARELESS).await;
    for folder in ["made", "made/here"] {
        assert_eq!(mode(&shared.path().join(folder)), 0o700, "{folder}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_second_process_is_refused_by_whatever_name_it_comes() {
    let home = Home::new(None);
    let gateway = Gateway::start(&home).await;
    let elsewhere = tempfile::tempdir().expect("a folder");
    let database = home.data().join("campanile.db");
    let [folder, link, hard] = ["folder", "link.db", "hard.db"].map(|name| elsewhere.path().join(name));
    std::os::unix::fs::symlink(home.data(), &folder).expect("a link");
    std::os::unix::fs::symlink(&database, &link).expect("a link");
    fs::hard_link(&database, &hard).expect("a link");
    for path in [folder.join("campanile.db"), link, hard] {
        let other = Home::new(Some(format!("sqlite:{}", path.display())));
        let said = Gateway::refused(&other).await;
        assert!(said.contains("is in use by another campanile"), "{}: {said}", path.display());
        // SQLite's own locks are as they were.
        assert_eq!(gateway.get("/readyz").await.status, 200);
    }
    // The folder is in use also while the database itself is away.
    fs::rename(&database, elsewhere.path().join("away.db")).expect("ours");
    let said = Gateway::refused(&Home::new(Some(format!("sqlite:{}", database.display())))).await;
    assert!(said.contains("is in use by another campanile"), "{said}");
    assert!(!database.exists(), "nothing was put in its place");
    gateway.stop().await;

    // A link alone is no reason to refuse.
    let link = elsewhere.path().join("link.db");
    let home = Home::new(Some(format!("sqlite:{}", link.display())));
    Gateway::start(&home).await.stop().await;
}
