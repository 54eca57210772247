//! Opening a store: its schema is brought up to date once, and what would break the promise is
//! refused with a text that says what to do.

use campanile::store::{Location, OpenError, Store, migrations_applied};

use crate::support::store::*;

async fn refusal(options: &campanile::store::Options) -> String {
    match Store::open(options).await {
        Err(error) => error.to_string(),
        Ok(_) => panic!("the store opens"),
    }
}

async fn each_migration_is_applied_once(location: Location) -> Vec<String> {
    let options = options(location);
    let first = migrations_applied(&options).await.unwrap();
    assert!(!first.is_empty() && first.iter().all(|(_, new)| *new), "{first:?}");
    let again = migrations_applied(&options).await.unwrap();
    assert!(again.iter().all(|(_, new)| !new), "{again:?}");
    Store::open(&options).await.unwrap();
    first.into_iter().map(|(name, _)| name).collect()
}

#[test]
fn each_migration_is_applied_once_and_has_one_name_on_both() {
    let mut names = Vec::new();
    in_folder(async |location| names.push(each_migration_is_applied_once(location).await));
    in_schema(async |location| names.push(each_migration_is_applied_once(location).await));
    assert_eq!(names[0], names[1]);
}

#[test]
fn nodes_that_start_together_find_one_schema() {
    in_schema(async |location| {
        let options = options(location);
        let opened = futures_util::future::join_all((0..4).map(|_| Store::open(&options))).await;
        let generations: Vec<_> = opened.into_iter().map(|store| store.unwrap().generation()).collect();
        assert!(generations.iter().all(|generation| *generation == generations[0]));
    });
}

async fn a_schema_of_a_newer_version_is_refused(store: TestStore) {
    store.execute("UPDATE meta SET value = '99.1.0' WHERE key = 'oldest_binary'").await;
    let TestStore { store, options } = store;
    drop(store);
    let refused = refusal(&options).await;
    assert!(refused.contains("needs Campanile 99.1.0 or newer") && refused.contains("upgrade"), "{refused}");
}

on_both![a_schema_of_a_newer_version_is_refused];

#[test]
fn a_folder_in_use_is_refused_until_it_is_free() {
    on_sqlite(async |store| {
        let refused = refusal(&store.options).await;
        assert!(refused.contains("is in use by another campanile: stop it first"), "{refused}");
        assert!(matches!(migrations_applied(&store.options).await, Err(OpenError::Locked(_))));
        let TestStore { store, options } = store;
        drop(store);
        Store::open(&options).await.unwrap();
    });
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    in_folder(async |location| {
        let Location::Sqlite { path } = location else { panic!("a folder is SQLite's") };
        std::fs::write(&path, "a file").unwrap();
        let refused =
            refusal(&options(Location::Sqlite { path: path.join("deeper").join("campanile.db") })).await;
        assert!(refused.contains("campanile.db/deeper") && refused.contains("may be written"), "{refused}");
        let refused = refusal(&options(Location::Sqlite { path })).await;
        assert!(refused.contains("not a database"), "{refused}");
    });
}

#[test]
fn a_server_that_is_not_there_is_named_by_its_variable() {
    in_folder(async |_| {
        let url = "postgres://nobody@127.0.0.1:1/nothing".to_owned();
        let refused = refusal(&options(Location::Postgres { url, direct_url: None })).await;
        assert!(refused.contains("Check DATABASE_URL"), "{refused}");
    });
}

#[test]
fn a_server_that_forgets_commits_is_refused_unless_that_is_fine() {
    in_schema(async |location| {
        let Location::Postgres { url, .. } = location else { panic!("a schema is Postgres's") };
        let url = with_setting(&url, "synchronous_commit", "off");
        let mut options = options(Location::Postgres { url, direct_url: None });
        let refused = refusal(&options).await;
        assert!(refused.contains("synchronous_commit off"), "{refused}");
        assert!(refused.contains("store.allow_data_loss = true"), "{refused}");
        options.allow_data_loss = true;
        Store::open(&options).await.unwrap();
    });
}
