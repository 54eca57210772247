//! What lies under `deploy/` fits the gateway: a real Prometheus scrapes a real node, loads the
//! alerts and answers every question of the dashboard, and none of them names a metric that the
//! node does not have. The examples of proxies and of containers have files of their own.

mod files;
mod proxies;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use testkit::server::Server;

use crate::support::app::{Backend, TestApp};
use crate::support::client::{Answer, DEADLINE, Request};

const RULES: &str = "deploy/prometheus/campanile.rules.yml";
const DASHBOARD: &str = "deploy/grafana/campanile.json";

fn promtool(arguments: &[&str]) {
    let done = Command::new("promtool").args(arguments).output().expect("tests/services installs promtool");
    assert!(done.status.success(), "{}{}", text(&done.stdout), text(&done.stderr));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_alert_goes_off_when_it_must_and_not_before() {
    promtool(&["check", "config", "deploy/prometheus/prometheus.yml"]);
    promtool(&["test", "rules", "deploy/prometheus/campanile.test.yml"]);
    let tests = std::fs::read_to_string("deploy/prometheus/campanile.test.yml").unwrap();
    for line in std::fs::read_to_string(RULES).unwrap().lines() {
        if let Some(alert) = line.trim().strip_prefix("- alert: ") {
            assert!(tests.contains(&format!("alertname=\"{alert}\"")), "{alert} has no test");
        }
    }
}

/// All words that look like our metrics.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("campanile_")).map(str::to_owned).collect()
}

/// The questions of the dashboard, with its variables filled in.
fn questions() -> Vec<String> {
    let dashboard: Value = serde_json::from_slice(&std::fs::read(DASHBOARD).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let fill = |expr: &str| expr.replace("$instance", ".*").replace("$__rate_interval", "1m");
    targets.map(|target| fill(target["expr"].as_str().unwrap())).collect()
}

/// A Prometheus of its own, ended with the test.
struct Prometheus {
    server: Server,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    async fn scraping(app: &TestApp) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(RULES, folder.path().join("rules.yml")).unwrap();
        let config = format!(
            "global: {{ scrape_interval: 200ms, evaluation_interval: 200ms }}\nrule_files: [rules.yml]\n\
             scrape_configs: [{{ job_name: campanile, static_configs: [{{ targets: [\"{}\"] }}] }}]\n",
            app.address(),
        );
        std::fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        let server = Server::start("prometheus", folder.path(), |port| {
            let listen = format!("--web.listen-address=127.0.0.1:{port}");
            vec!["--config.file=prometheus.yml".into(), "--storage.tsdb.path=data".into(), listen]
        });
        let server = server.await.expect("tests/services installs prometheus");
        let prometheus = Self { server, _folder: folder };
        let up = async {
            while prometheus.scalar("up{job=\"campanile\"}").await.as_deref() != Some("1") {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(DEADLINE, up).await.expect("Prometheus scrapes the node");
        prometheus
    }

    async fn get(&self, path: &str) -> Option<Answer> {
        Request::get(path).try_send(self.server.address).await
    }

    async fn ask(&self, question: &str) -> Option<Answer> {
        let escaped: String = question.bytes().map(|byte| format!("%{byte:02X}")).collect();
        self.get(&format!("/api/v1/query?query={escaped}")).await
    }

    async fn scalar(&self, question: &str) -> Option<String> {
        // 503 until it has started.
        let answer = self.ask(question).await.filter(|answer| answer.status == 200)?.json();
        Some(answer["data"]["result"][0]["value"][1].as_str()?.to_owned())
    }
}

#[tokio::test]
async fn prometheus_loads_the_alerts_and_answers_the_dashboard() {
    let app = TestApp::start(Backend::Sqlite).await;
    app.post_runs(1..=3).await;
    let _stream = app.stream("org:acme", &app.ana(), None).await;

    let shown = app.get("/metrics", "").await.expect(200).text().to_owned();
    let rules = std::fs::read_to_string(RULES).unwrap();
    let named = metrics_in(&(rules + &questions().join(" ")));
    assert!(named.len() > 15, "{named:?}");
    for name in named {
        let family = ["_total", "_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let known = |name: &str| shown.contains(&format!("# TYPE {name} "));
        assert!(known(&name) || family.is_some_and(known), "there is no metric {name}");
    }

    let prometheus = Prometheus::scraping(&app).await;
    for question in questions() {
        let answer = prometheus.ask(&question).await.expect("an answer").json();
        assert_eq!(answer["status"], "success", "{question}: {answer}");
    }
    let events = prometheus.scalar("sum(campanile_webhooks_total{outcome=\"processed\"})").await;
    assert_eq!(events.as_deref(), Some("3"));
    assert_eq!(
        prometheus.scalar("campanile_connection_attempts_total{outcome=\"open\"}").await.as_deref(),
        Some("1")
    );
    assert_eq!(prometheus.scalar("campanile_limit_used{limit=\"streams\"}").await.as_deref(), Some("1"));
    let loaded = prometheus.get("/api/v1/rules").await.expect("an answer").json();
    let loaded = loaded["data"]["groups"][0]["rules"].as_array().unwrap().clone();
    assert!(loaded.len() >= 10);
    for rule in loaded {
        assert_eq!((&rule["health"], &rule["state"]), (&"ok".into(), &"inactive".into()), "{rule}");
    }
}
