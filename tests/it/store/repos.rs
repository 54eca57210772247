//! Repositories: seen, renamed, gone and back, and found by whoever may see them.

use campanile::domain::workflow::{RepoUpdate, WorkflowRun};
use campanile::store::repos::{self, Filter, Repo, Visible, id_of};
use campanile::store::runs;
use futures_util::FutureExt as _;

use crate::support::store::*;

on_both![
    a_repository_is_known_by_its_number,
    what_a_delivery_leaves_out_keeps_its_value,
    a_repository_that_looks_the_same_is_not_written,
    a_repository_goes_and_comes_back,
    a_list_shows_what_its_reader_may_see,
    a_list_is_narrowed_by_text_in_any_case_and_by_nothing_but_text,
    a_list_is_narrowed_by_owner_and_by_the_newest_run,
    a_list_goes_on_where_it_ended,
];

#[test]
fn a_delivery_takes_nothing_back_that_came_in_between() {
    on_postgres(async |store| {
        see(&store, update(1, "acme", "api")).await;
        let other = store.session().await;
        other
            .batch_execute("BEGIN; UPDATE repos SET default_branch = 'next', webhook_enabled = FALSE")
            .await
            .unwrap();
        let renamed = see(&store, RepoUpdate { default_branch: None, ..update(1, "acme", "api2") });
        let blocked = async {
            let watcher = store.session().await;
            let waits =
                "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%repos%'";
            eventually("the rename waits for the row", async || {
                !watcher.query(waits, &[]).await.unwrap().is_empty()
            })
            .await;
            other.batch_execute("COMMIT").await.unwrap();
        };
        tokio::join!(renamed, blocked);
        let repo = get(&store, 1).await.unwrap();
        assert_eq!((repo.name.as_str(), repo.default_branch.as_deref()), ("api2", Some("next")));
        assert!(!repo.webhook_enabled);
    });
}

fn update(github_id: i64, owner: &str, name: &str) -> RepoUpdate {
    RepoUpdate {
        github_id,
        owner: owner.into(),
        name: name.into(),
        default_branch: Some("main".into()),
        private: Some(false),
        installation_id: Some(5),
    }
}

async fn see(store: &TestStore, update: RepoUpdate) {
    let now = store.store.timestamp();
    store.write(move |conn| async move { repos::record(conn, &[update], now).await }.boxed()).await;
}

async fn get(store: &TestStore, github_id: i64) -> Option<Repo> {
    store.read(move |conn| repos::get(conn, id_of(github_id)).boxed()).await
}

async fn get_by_name(store: &TestStore, owner: &'static str, name: &'static str) -> Option<i64> {
    let found = store.read(move |conn| repos::get_by_name(conn, owner, name).boxed()).await;
    found.map(|repo| repo.github_id)
}

async fn list(store: &TestStore, visible: Visible, filter: Filter, limit: u32) -> Vec<Repo> {
    store.read(move |conn| async move { repos::list(conn, &visible, &filter, limit).await }.boxed()).await
}

fn names(repos: &[Repo]) -> Vec<String> {
    repos.iter().map(|repo| format!("{}/{}", repo.owner, repo.name)).collect()
}

fn everything() -> Visible {
    Visible { all: true, ..Visible::default() }
}

async fn a_repository_is_known_by_its_number(store: TestStore) {
    see(&store, update(1, "acme", "api")).await;
    see(&store, update(2, "acme", "web")).await;
    let first = get(&store, 1).await.unwrap();
    assert_eq!((first.owner.as_str(), first.name.as_str(), first.github_id), ("acme", "api", 1));
    assert!(first.webhook_enabled && !first.private);

    see(&store, update(1, "Acme", "gateway")).await;
    let renamed = get(&store, 1).await.unwrap();
    assert_eq!((renamed.id, names(&[renamed])), (first.id, vec!["Acme/gateway".into()]));
    assert_eq!(get_by_name(&store, "Acme", "gateway").await, Some(1));
    assert_eq!(get_by_name(&store, "acme", "gateway").await, None, "names are byte-exact");
    assert_eq!(get_by_name(&store, "acme", "api").await, None);

    see(&store, update(3, "acme", "api")).await;
    assert_eq!(get_by_name(&store, "acme", "api").await, Some(3), "a name can be given again");
    assert_eq!(get(&store, 9).await, None);
}

async fn what_a_delivery_leaves_out_keeps_its_value(store: TestStore) {
    let bare =
        RepoUpdate { default_branch: None, private: None, installation_id: None, ..update(1, "a", "b") };
    see(&store, bare.clone()).await;
    let new = get(&store, 1).await.unwrap();
    assert_eq!((new.private, new.default_branch), (true, None), "hidden until somebody says otherwise");
    see(&store, update(1, "a", "b")).await;
    see(&store, RepoUpdate { name: "c".into(), ..bare }).await;
    let kept = get(&store, 1).await.unwrap();
    assert_eq!(
        (kept.private, kept.default_branch.as_deref(), kept.name.as_str()),
        (false, Some("main"), "c")
    );
    assert_eq!(store.number("SELECT installation_id AS number FROM repos".into()).await, 5);
}

async fn a_repository_that_looks_the_same_is_not_written(store: TestStore) {
    see(&store, update(1, "acme", "api")).await;
    let before = get(&store, 1).await.unwrap();
    see(&store, update(1, "acme", "api")).await;
    assert_eq!(get(&store, 1).await.unwrap(), before);
    see(&store, RepoUpdate { private: Some(true), ..update(1, "acme", "api") }).await;
    let after = get(&store, 1).await.unwrap();
    assert!(after.private && after.updated_at > before.updated_at);
}

async fn a_repository_goes_and_comes_back(store: TestStore) {
    see(&store, update(1, "acme", "api")).await;
    let now = store.store.timestamp();
    store.write(move |conn| repos::set_webhook(conn, 1, false, now).boxed()).await;
    store.write(move |conn| repos::set_webhook(conn, 9, false, now).boxed()).await;
    assert!(!get(&store, 1).await.unwrap().webhook_enabled);
    store.write(move |conn| repos::remove(conn, 1, now).boxed()).await;
    store.write(move |conn| repos::remove(conn, 9, now).boxed()).await;
    assert_eq!((get(&store, 1).await, get_by_name(&store, "acme", "api").await), (None, None));
    assert!(list(&store, everything(), Filter::default(), 10).await.is_empty());

    see(&store, update(1, "acme", "api")).await;
    let back = get(&store, 1).await.unwrap();
    assert!(!back.webhook_enabled, "what was known of it is still known");
    assert_eq!(names(&list(&store, everything(), Filter::default(), 10).await), ["acme/api"]);
}

async fn a_list_shows_what_its_reader_may_see(store: TestStore) {
    for (id, owner, name) in [(1, "acme", "api"), (2, "acme", "web"), (3, "bolt", "api"), (4, "Acme", "api")]
    {
        see(&store, update(id, owner, name)).await;
    }
    let shown = async |owners: &[&str], repos: &[&str]| {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let visible = Visible { all: false, owners: set(owners), repos: set(repos) };
        names(&list(&store, visible, Filter::default(), 10).await)
    };
    assert!(shown(&[], &[]).await.is_empty());
    assert_eq!(shown(&["acme"], &[]).await, ["acme/api", "acme/web"]);
    assert_eq!(shown(&[], &["bolt/api", "acme/web"]).await, ["acme/web", "bolt/api"]);
    assert_eq!(shown(&["Acme"], &["acme/api", "acme/api/", "%"]).await, ["Acme/api", "acme/api"]);
    let all = names(&list(&store, everything(), Filter::default(), 10).await);
    assert_eq!(all, ["Acme/api", "acme/api", "acme/web", "bolt/api"], "byte for byte on both");
}

async fn a_list_is_narrowed_by_text_in_any_case_and_by_nothing_but_text(store: TestStore) {
    let all = ["API.Gateway", "a_b", "axb", "full-100", "web"];
    for (id, name) in (1..).zip(all) {
        see(&store, update(id, "Acme", name)).await;
    }
    let found = async |text: &str| {
        let filter = Filter { text: Some(text.to_owned()), ..Filter::default() };
        let found = list(&store, everything(), filter, 10).await;
        found.into_iter().map(|repo| repo.name).collect::<Vec<_>>()
    };
    assert_eq!(found("api").await, ["API.Gateway"]);
    assert_eq!(found("ACME/a").await, ["API.Gateway", "a_b", "axb"], "over the slash");
    assert_eq!(found("a_b").await, ["a_b"]);
    assert_eq!(found("").await, all);
    for nothing in ["%", "100%", "__", "\\", "'", "a\\_b", "é"] {
        assert!(found(nothing).await.is_empty(), "{nothing}");
    }
}

async fn a_list_is_narrowed_by_owner_and_by_the_newest_run(store: TestStore) {
    for (id, owner, name) in
        [(1, "acme", "red"), (2, "acme", "green"), (3, "acme", "idle"), (4, "bolt", "red")]
    {
        see(&store, update(id, owner, name)).await;
    }
    let now = store.store.timestamp();
    let runs = [
        (1, 10, Some("success")),
        (1, 11, Some("failure")),
        (2, 20, Some("failure")),
        (2, 21, None),
        (4, 40, Some("failure")),
    ];
    store
        .write(move |conn| {
            async move {
                for (repo, run_id, conclusion) in runs {
                    let run = WorkflowRun {
                        run_id,
                        workflow_id: 1,
                        workflow_name: None,
                        run_number: None,
                        status: if conclusion.is_some() { "completed".into() } else { "in_progress".into() },
                        conclusion: conclusion.map(Into::into),
                        event: None,
                        branch: None,
                        commit_sha: None,
                        attempt: 1,
                        url: None,
                        created_at: None,
                        started_at: None,
                        updated_at: None,
                    };
                    runs::record(conn, std::iter::once((id_of(repo), run)), now).await?;
                }
                Ok(())
            }
            .boxed()
        })
        .await;
    let found = async |owner: Option<&str>, status: Option<&str>| {
        let filter =
            Filter { owner: owner.map(Into::into), status: status.map(Into::into), ..Filter::default() };
        names(&list(&store, everything(), filter, 10).await)
    };
    assert_eq!(found(None, Some("failure")).await, ["acme/red", "bolt/red"]);
    assert_eq!(found(Some("bolt"), Some("failure")).await, ["bolt/red"]);
    assert_eq!(found(None, Some("in_progress")).await, ["acme/green"]);
    assert!(found(None, Some("success")).await.is_empty(), "only the newest run counts");
    assert_eq!(found(Some("acme"), None).await, ["acme/green", "acme/idle", "acme/red"]);
    assert!(found(Some("Acme"), None).await.is_empty());
}

async fn a_list_goes_on_where_it_ended(store: TestStore) {
    // One name twice: a repository that was removed elsewhere and made again under its name.
    let all = [(1, "a", "x"), (2, "a", "y"), (3, "a", "y"), (4, "a", "z"), (5, "b", "a"), (6, "b", "x")];
    for (id, owner, name) in all {
        see(&store, update(id, owner, name)).await;
    }
    for limit in 1..=7 {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let filter = Filter { after, ..Filter::default() };
            let page = list(&store, everything(), filter, limit).await;
            let Some(last) = page.last() else { break };
            after = Some((last.owner.clone(), last.name.clone(), last.id));
            seen.extend(page.iter().map(|repo| repo.github_id));
        }
        let mut sorted = seen.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [1, 2, 3, 4, 5, 6], "with {limit} at a time, each once: {seen:?}");
    }
}
