//! What the demo's payloads are composed of: repositories, people, commits. Lists of links are
//! complete, since their size is part of what a real delivery costs.

use serde_json::{Value, json};

use super::Run;
use super::catalog::{OWNER, OWNER_ID, PEOPLE, RepoSpec};
use crate::domain::event::Time;

pub const WEB: &str = "https://github.com";
pub const API: &str = "https://api.github.com";

/// The links of a repository object: field, and what follows its API address.
const REPO_LINKS: [(&str, &str); 37] = [
    ("url", ""),
    ("archive_url", "/{archive_format}{/ref}"),
    ("assignees_url", "/assignees{/user}"),
    ("blobs_url", "/git/blobs{/sha}"),
    ("branches_url", "/branches{/branch}"),
    ("collaborators_url", "/collaborators{/collaborator}"),
    ("comments_url", "/comments{/number}"),
    ("commits_url", "/commits{/sha}"),
    ("compare_url", "/compare/{base}...{head}"),
    ("contents_url", "/contents/{+path}"),
    ("contributors_url", "/contributors"),
    ("deployments_url", "/deployments"),
    ("downloads_url", "/downloads"),
    ("events_url", "/events"),
    ("forks_url", "/forks"),
    ("git_commits_url", "/git/commits{/sha}"),
    ("git_refs_url", "/git/refs{/sha}"),
    ("git_tags_url", "/git/tags{/sha}"),
    ("hooks_url", "/hooks"),
    ("issue_comment_url", "/issues/comments{/number}"),
    ("issue_events_url", "/issues/events{/number}"),
    ("issues_url", "/issues{/number}"),
    ("keys_url", "/keys{/key_id}"),
    ("labels_url", "/labels{/name}"),
    ("languages_url", "/languages"),
    ("merges_url", "/merges"),
    ("milestones_url", "/milestones{/number}"),
    ("notifications_url", "/notifications{?since,all,participating}"),
    ("pulls_url", "/pulls{/number}"),
    ("releases_url", "/releases{/id}"),
    ("stargazers_url", "/stargazers"),
    ("statuses_url", "/statuses/{sha}"),
    ("subscribers_url", "/subscribers"),
    ("subscription_url", "/subscription"),
    ("tags_url", "/tags"),
    ("teams_url", "/teams"),
    ("trees_url", "/git/trees{/sha}"),
];

const COUNTS: [(&str, u32); 8] = [
    ("size", 5_120),
    ("stargazers_count", 12),
    ("watchers_count", 12),
    ("watchers", 12),
    ("forks_count", 1),
    ("forks", 1),
    ("open_issues_count", 4),
    ("open_issues", 4),
];

const FLAGS: [(&str, bool); 11] = [
    ("has_issues", true),
    ("has_projects", true),
    ("has_downloads", true),
    ("has_wiki", false),
    ("has_pages", false),
    ("has_discussions", false),
    ("archived", false),
    ("disabled", false),
    ("allow_forking", true),
    ("is_template", false),
    ("web_commit_signoff_required", false),
];

pub fn repository(repo: &RepoSpec, now: Time) -> Value {
    let page = format!("{WEB}/{OWNER}/{}", repo.name);
    let mut body = json!({
        "id": repo.id, "node_id": node("R", repo.id), "name": repo.name,
        "full_name": format!("{OWNER}/{}", repo.name),
        "private": repo.private, "visibility": if repo.private { "private" } else { "public" }, "owner": account(),
        "html_url": page, "description": repo.description, "fork": false, "homepage": null, "language": repo.language,
        "git_url": format!("git://github.com/{OWNER}/{}.git", repo.name),
        "ssh_url": format!("git@github.com:{OWNER}/{}.git", repo.name),
        "clone_url": format!("{page}.git"), "svn_url": page, "mirror_url": null,
        "created_at": "2026-02-03T08:58:10Z", "updated_at": time(now), "pushed_at": time(now),
        "license": null, "topics": [], "default_branch": "main", "custom_properties": {},
    });
    for (field, count) in COUNTS {
        body[field] = count.into();
    }
    for (field, set) in FLAGS {
        body[field] = set.into();
    }
    for (field, path) in REPO_LINKS {
        body[field] = format!("{API}/repos/{OWNER}/{}{path}", repo.name).into();
    }
    body
}

pub fn head_commit(run: &Run, at: Time) -> Value {
    let author = PEOPLE[author_of(run)].0;
    let signature = json!({ "name": author, "email": email(author), "username": author });
    json!({
        "id": run.sha, "tree_id": run.sha.chars().rev().collect::<String>(), "message": run.title, "distinct": true,
        "timestamp": time(at), "author": signature, "committer": signature,
        "added": [], "removed": [], "modified": ["src/lib.rs"],
    })
}

pub fn account() -> Value {
    user(OWNER, OWNER_ID, "Organization")
}

pub fn person(at: usize) -> Value {
    user(PEOPLE[at].0, PEOPLE[at].1, "User")
}

/// One run has one author.
pub fn author_of(run: &Run) -> usize {
    (run.number % PEOPLE.len() as u64) as usize
}

fn user(login: &str, id: u64, kind: &str) -> Value {
    json!({
        "login": login, "id": id, "node_id": node("U", id), "avatar_url": avatar(id), "gravatar_id": "",
        "url": format!("{API}/users/{login}"), "html_url": format!("{WEB}/{login}"),
        "repos_url": format!("{API}/users/{login}/repos"),
        "events_url": format!("{API}/users/{login}/events{{/privacy}}"),
        "type": kind, "user_view_type": "public", "site_admin": false,
    })
}

pub fn avatar(id: u64) -> String {
    format!("https://avatars.githubusercontent.com/u/{id}?v=4")
}

pub fn email(login: &str) -> String {
    format!("{login}@users.noreply.github.com")
}

pub fn node(kind: &str, id: u64) -> String {
    format!("{kind}_kwDO{id:08x}")
}

/// GitHub's spelling: whole seconds.
pub fn time(at: Time) -> String {
    at.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}
