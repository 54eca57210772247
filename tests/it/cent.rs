//! The server API, as the stock Python client calls it.

use std::path::Path;
use std::process::Command;

use crate::support::process::{API_KEY, Gateway, Home, on_sqlite};

#[test]
fn the_stock_python_client_finds_every_method() {
    on_sqlite(async |home: Home| {
        let home = home
            .with("CAMPANILE_CHANNEL__WITHOUT_NAMESPACE__PRESENCE", "true")
            .with("CAMPANILE_CHANNEL__WITHOUT_NAMESPACE__HISTORY_SIZE", "100")
            .with("CAMPANILE_CHANNEL__WITHOUT_NAMESPACE__HISTORY_TTL", "5m");
        let gateway = Gateway::start(&home).await;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cent/run");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cent");
        let mut client = Command::new(script);
        client.arg(format!("http://{}", gateway.address)).arg(folder).env("API_KEY", API_KEY);
        let ended = client.output().expect("the script runs");
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success(), "{said}{}", String::from_utf8_lossy(&ended.stderr));
        gateway.stop().await;
    });
}
