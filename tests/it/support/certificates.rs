//! Certificates for one test, made by openssl: authorities, and servers that they vouch for.

use std::path::{Path, PathBuf};
use std::process::Command;

/// An authority in a folder of its own.
pub struct Authority {
    folder: PathBuf,
}

impl Authority {
    pub fn new(folder: &Path, name: &str) -> Self {
        let folder = folder.join(name);
        std::fs::create_dir(&folder).expect("a folder");
        let authority = Self { folder };
        authority.openssl("ca", &["-subj", &format!("/CN={name}")]);
        authority
    }

    /// The certificate of the authority, as PEM.
    pub fn file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// The certificate and the key of a server of that name (`DNS:…` or `IP:…`).
    pub fn vouch(&self, name: &str) -> (PathBuf, PathBuf) {
        let (authority, key) = (self.file(), self.folder.join("ca.key"));
        let (authority, key) = (authority.to_str().expect("a path"), key.to_str().expect("a path"));
        let subject = format!("subjectAltName={name}");
        let words = ["-subj", "/CN=a server", "-CA", authority, "-CAkey", key, "-addext", &subject];
        self.openssl("server", &[&words[..], &["-addext", "basicConstraints=critical,CA:FALSE"]].concat());
        (self.folder.join("server.pem"), self.folder.join("server.key"))
    }

    fn openssl(&self, name: &str, words: &[&str]) {
        let new =
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "2"];
        let mut command = Command::new("openssl");
        command.args(new).args(words).current_dir(&self.folder);
        command.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]);
        let done = command.output().expect("tests/services installs openssl");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}
