//! Secrets: generated once when embedded, never in a cluster, never over one that is set.

use std::fs;
use std::path::Path;

use super::*;

fn embedded(folder: &Path) -> Config {
    let mut config = Config::default();
    config.server.data_dir = folder.join("data");
    config
}

#[test]
fn embedded_secrets_are_generated_once_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let config = embedded(folder.path());
    let first = config.resolve_secrets().unwrap();
    assert_eq!(first.generated, ["client.token.hmac_secret_key", "http_api.key", "github.webhook_secrets"]);
    assert_eq!(first.jwt.expose().len(), 64);
    assert_ne!(first.jwt, first.api_key);

    let second = config.resolve_secrets().unwrap();
    assert_eq!(second, Secrets { generated: Vec::new(), ..first.clone() });
    let found = config.read_secrets().unwrap();
    assert_eq!(found.jwt().unwrap(), &first.jwt);
    assert_eq!(found.api_key().unwrap(), &first.api_key);
    assert_eq!(found.github().unwrap(), first.github);
}

#[cfg(unix)]
#[test]
fn nobody_else_may_read_the_folder_and_the_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let config = embedded(folder.path());
    config.resolve_secrets().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&config.server.data_dir), 0o700);
    assert_eq!(mode(&config.server.data_dir.join("secrets.toml")), 0o600);
}

#[test]
fn a_secret_that_is_set_wins_over_a_generated_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = embedded(folder.path());
    let generated = config.resolve_secrets().unwrap();
    config.http_api.key = Some(Secret::new("set by the operator"));
    let secrets = config.resolve_secrets().unwrap();
    assert_eq!(secrets.api_key.expose(), "set by the operator");
    assert_eq!(secrets.jwt, generated.jwt);
}

#[test]
fn what_is_missing_in_the_file_is_added_and_the_rest_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = embedded(folder.path());
    config.http_api.key = Some(Secret::new("set by the operator"));
    let before = config.resolve_secrets().unwrap();
    assert_eq!(before.generated.len(), 2);
    config.http_api.key = None;
    let after = config.resolve_secrets().unwrap();
    assert_eq!(after.generated, ["http_api.key"]);
    assert_eq!((after.jwt, after.github), (before.jwt, before.github));
}

#[test]
fn processes_that_start_together_agree_on_the_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let config = embedded(folder.path());
    let start = || config.resolve_secrets().unwrap();
    let all: Vec<Secrets> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(all.iter().all(|secrets| secrets.jwt == all[0].jwt && secrets.github == all[0].github));
    assert_eq!(all.iter().filter(|secrets| !secrets.generated.is_empty()).count(), 1);
}

#[test]
fn reading_creates_nothing_and_says_how_to_get_a_secret() {
    let folder = tempfile::tempdir().unwrap();
    let config = embedded(folder.path());
    let error = config.read_secrets().unwrap().jwt().unwrap_err().to_string();
    assert!(error.contains("set CAMPANILE_JWT_SECRET or start `campanile serve` once"), "{error}");
    assert!(!config.server.data_dir.exists());
}

#[test]
fn nothing_is_created_if_all_secrets_are_set() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = embedded(folder.path());
    config.client.token.hmac_secret_key = Some(Secret::new("a"));
    config.http_api.key = Some(Secret::new("b"));
    config.github.webhook_secrets = vec![Secret::new("c")];
    assert!(config.resolve_secrets().unwrap().generated.is_empty());
    assert!(!config.server.data_dir.exists());
}

#[test]
fn a_cluster_needs_all_of_them_and_names_the_variables() {
    let config =
        environment([("DATABASE_URL", "postgres://db/campanile"), ("CAMPANILE_API_KEY", "set")]).unwrap();
    let error = config.resolve_secrets().unwrap_err();
    let remedies: Vec<&str> = error.problems().iter().map(|problem| problem.remedy.as_str()).collect();
    assert_eq!(
        remedies,
        [
            "set CAMPANILE_JWT_SECRET to the same value on each node",
            "set GITHUB_WEBHOOK_SECRET to the same value on each node"
        ]
    );
    assert_eq!(config.read_secrets().unwrap().api_key().unwrap().expose(), "set");
}

#[test]
fn a_damaged_file_is_refused_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let config = embedded(folder.path());
    fs::create_dir(&config.server.data_dir).unwrap();
    let file = config.server.data_dir.join("secrets.toml");
    for text in ["jwt_secret = \"hunter2", "jwt_secret = \"\"", "jwt_secret = 31337", "other = \"hunter2\""] {
        fs::write(&file, text).unwrap();
        let error = config.resolve_secrets().unwrap_err().to_string();
        assert!(error.contains("secrets.toml: the generated secrets cannot be understood"), "{error}");
        assert!(!error.contains("hunter2") && !error.contains("31337"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
    }
}
