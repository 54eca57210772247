//! `campanile backup` on a gateway that goes on working, and what readers are told when the copy is
//! put to use.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::app::{Backend, TestApp};

fn backup(data: &Path, file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_campanile"))
        .args(["backup", file.to_str().unwrap(), "--data-dir", data.to_str().unwrap()])
        .env_remove("DATABASE_URL")
        .current_dir(data)
        .output()
        .expect("the binary runs")
}

fn run_ids(page: &Value) -> Vec<u64> {
    let events = page["events"].as_array().unwrap().iter();
    events.filter_map(|event| event["data"]["runId"].as_u64()).collect()
}

fn epoch(page: &Value) -> String {
    page["cursor"].as_str().unwrap().split('.').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_backup_has_all_that_was_accepted_and_a_restore_is_a_new_history() {
    let mut app = TestApp::start(Backend::Sqlite).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let (data, copy) = (app.folder().to_path_buf(), elsewhere.path().join("copy.db"));
    let ana = app.ana();
    app.post_runs(1..=50).await;

    // The gateway goes on while it is copied.
    let writing = async {
        for run in 51.. {
            app.post_runs([run]).await;
            if copy.exists() {
                return run;
            }
        }
        unreachable!("numbers do not end")
    };
    let (from, to) = (data.clone(), copy.clone());
    let copying = tokio::task::spawn_blocking(move || backup(&from, &to));
    let (last, copied) = tokio::join!(writing, copying);
    let copied = copied.unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    let said = String::from_utf8_lossy(&copied.stdout).into_owned();
    assert!(said.contains("copy.db: ") && said.contains(" MiB in "), "{said}");
    let before = app.poll("channel=repo:acme/api&limit=100", &ana).await;
    let mut cursor = before["cursor"].as_str().unwrap().to_owned();

    // Nothing is overwritten, and nothing is left of what failed.
    let again = backup(&data, &copy);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("exists already"));
    let nowhere = backup(&data, &elsewhere.path().join("no/folder/copy.db"));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("cannot write"));
    let missing = backup(elsewhere.path(), &elsewhere.path().join("other.db"));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("no database"));
    let left: Vec<_> =
        std::fs::read_dir(elsewhere.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left, ["copy.db"]);
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&copy).unwrap());
    assert_eq!(mode & 0o777, 0o600);

    let mut epochs = vec![epoch(&before)];
    for round in 1..=2u64 {
        app.stop().await;
        for file in ["campanile.db-wal", "campanile.db-shm"] {
            let _ = std::fs::remove_file(data.join(file));
        }
        std::fs::copy(&copy, data.join("campanile.db")).unwrap();
        app.restart().await;

        app.get(&format!("/api/events?channel=repo:acme/api&cursor={cursor}"), &ana)
            .await
            .refused(410, "cursor_lost");
        let mut restored = Vec::new();
        let mut page = app.poll("channel=repo:acme/api&limit=100", &ana).await;
        restored.extend(run_ids(&page));
        while page["hasNext"] == true {
            let next = page["cursor"].as_str().unwrap().to_owned();
            page = app.poll(&format!("channel=repo:acme/api&limit=100&cursor={next}"), &ana).await;
            restored.extend(run_ids(&page));
        }
        assert!(restored.len() >= 50 && restored.len() as u64 <= last);
        assert_eq!(restored, (1..=restored.len() as u64).collect::<Vec<_>>());
        assert!(!epochs.contains(&epoch(&page)), "{epochs:?}");
        epochs.push(epoch(&page));
        // What follows now is a history of its own.
        app.post_runs([1000 + round]).await;
        let after = app
            .poll(&format!("channel=repo:acme/api&cursor={}", page["cursor"].as_str().unwrap()), &ana)
            .await;
        assert_eq!(run_ids(&after), [1000 + round]);
        cursor = after["cursor"].as_str().unwrap().to_owned();

        // A restart is no restore.
        app.restart().await;
        let same = app.poll(&format!("channel=repo:acme/api&cursor={cursor}"), &ana).await;
        assert_eq!((run_ids(&same), epoch(&same)), (vec![], epoch(&page)));
    }
}
