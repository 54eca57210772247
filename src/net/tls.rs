//! TLS as a client: how the addresses of PostgreSQL and Redis are read, and which servers are
//! believed. For PostgreSQL the words are libpq's (`sslmode`, `sslrootcert`). Where libpq would quietly
//! check less than somebody who names an authority can mean, the address is refused instead.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// What a path in an address may keep.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_');
/// Stands for the public authorities, as in libpq.
const SYSTEM: &str = "system";

/// Why TLS is not possible as it was asked for. None of these repeats an address.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The address contradicts itself, or asks for what does not exist.
    #[error("{0}")]
    Address(&'static str),
    /// The file of the authorities is of no use.
    #[error("{path}: {wrong}")]
    Authorities {
        path: PathBuf,
        /// What is wrong with it.
        wrong: String,
    },
    /// This Redis cannot be spoken to; without its address, which may hold a password.
    #[error("{0}")]
    Redis(String),
    /// What rustls says to its own defaults.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
}

/// How far a server is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    Plain,
    /// TLS if the server has it, with anybody.
    Prefer,
    /// TLS, with anybody.
    Anybody,
    /// TLS with whoever has a certificate of these authorities, for whatever name.
    Chain(PathBuf),
    /// TLS with a certificate of these authorities (the public ones if unset) for the name dialled.
    Name(Option<PathBuf>),
}

/// The address of a PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresAddress {
    /// The address without what is said of TLS, for the driver.
    pub url: String,
    /// What was said of TLS.
    pub trust: Trust,
}

impl FromStr for PostgresAddress {
    type Err = TlsError;

    fn from_str(url: &str) -> Result<Self, TlsError> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut mode, mut authorities, mut others) = (None, None, Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let text = || percent_decode_str(value).decode_utf8_lossy().into_owned();
            match name {
                "sslmode" => mode = Some(text()),
                "sslrootcert" => authorities = Some(text()),
                "sslcert" | "sslkey" => {
                    return Err(TlsError::Address("certificates of clients (sslcert) are not supported"));
                }
                // It would be repeated as an option that nobody knows.
                _ if name.contains('@') => {
                    return Err(TlsError::Address("a `?` in a user's name or password is written %3F"));
                }
                _ => others.push(pair),
            }
        }
        let url = if others.is_empty() { base.to_owned() } else { format!("{base}?{}", others.join("&")) };
        Ok(Self { url, trust: Trust::read(mode.as_deref(), authorities.filter(|path| !path.is_empty()))? })
    }
}

impl Trust {
    fn read(mode: Option<&str>, authorities: Option<String>) -> Result<Self, TlsError> {
        let refused = |wrong| Err(TlsError::Address(wrong));
        let file = authorities.as_deref().filter(|name| *name != SYSTEM).map(PathBuf::from);
        match (mode, &authorities) {
            (Some("disable"), _) => Ok(Self::Plain),
            (None | Some("prefer"), None) => Ok(Self::Prefer),
            (Some("require"), None) => Ok(Self::Anybody),
            (None | Some("verify-full"), _) => Ok(Self::Name(file)),
            (Some("require" | "verify-ca"), Some(_)) => match file {
                Some(file) => Ok(Self::Chain(file)),
                None => {
                    refused("anybody can get a certificate of a public authority: use sslmode=verify-full")
                }
            },
            (Some("verify-ca"), None) => {
                refused("sslmode=verify-ca needs a certificate authority: set sslrootcert")
            }
            (Some("prefer"), Some(_)) => {
                refused("sslmode=prefer may fall back to no TLS despite the authority: write verify-full")
            }
            _ => refused("sslmode is one of disable, prefer, require, verify-ca and verify-full"),
        }
    }

    /// The client's side of TLS, if there is to be any.
    pub fn client(&self) -> Result<Option<ClientConfig>, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let less = |authorities| Arc::new(Less { authorities, provider });
        let builder = match self {
            Self::Plain => return Ok(None),
            Self::Prefer | Self::Anybody => builder.dangerous().with_custom_certificate_verifier(less(None)),
            Self::Chain(file) => {
                builder.dangerous().with_custom_certificate_verifier(less(Some(authorities_in(file)?)))
            }
            Self::Name(Some(file)) => builder.with_root_certificates(authorities_in(file)?),
            Self::Name(None) => builder.with_root_certificates(public_authorities()),
        };
        Ok(Some(builder.with_no_client_auth()))
    }
}

/// `url` with the authorities in `file`, unless it names some itself.
pub fn with_authorities(url: &str, file: &Path) -> String {
    let query = url.split_once('?').map(|(_, query)| query);
    if query.is_some_and(|query| query.split('&').any(|pair| pair.starts_with("sslrootcert="))) {
        return url.to_owned();
    }
    let joint = if query.is_some() { '&' } else { '?' };
    let path = file.to_string_lossy();
    format!("{url}{joint}sslrootcert={}", utf8_percent_encode(&path, IN_PATH))
}

/// A client of the Redis at `url`. With `rediss://` it has to have a certificate for the host in the
/// address, of the authorities in the file or else of a public one.
pub fn redis(url: &str, authorities: Option<&Path>) -> Result<redis::Client, TlsError> {
    let client = match authorities {
        None => redis::Client::open(url),
        Some(file) => {
            // Read once more by the client, which says less of what is wrong.
            authorities_in(file)?;
            let root_cert = std::fs::read(file).ok();
            redis::Client::build_with_tls(url, redis::TlsCertificates { client_tls: None, root_cert })
        }
    };
    client.map_err(|error| TlsError::Redis(error.category().to_owned()))
}

/// The certificates of a file in PEM, as those to believe.
pub fn authorities_in(file: &Path) -> Result<RootCertStore, TlsError> {
    let wrong = |wrong: String| TlsError::Authorities { path: file.to_path_buf(), wrong };
    let pem = std::fs::read(file).map_err(|error| wrong(error.to_string()))?;
    let mut authorities = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        authorities.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if authorities.is_empty() {
        return Err(wrong("the file contains no PEM certificate".to_owned()));
    }
    Ok(authorities)
}

fn public_authorities() -> RootCertStore {
    RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned())
}

/// Believes without a look at the name, and without authorities anybody. That the server has the
/// key of the certificate it shows is always checked: channel binding rests on it.
#[derive(Debug)]
struct Less {
    authorities: Option<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Less {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(authorities) = &self.authorities {
            rustls::client::verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(end_entity)?,
                authorities,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<(String, Trust), String> {
        let address = PostgresAddress::from_str(&format!("postgres://u:p%3Fw@db:5432/c{query}"));
        let address = address.map_err(|error| error.to_string())?;
        Ok((address.url.strip_prefix("postgres://u:p%3Fw@db:5432/c").unwrap().to_owned(), address.trust))
    }

    #[test]
    fn each_mode_means_what_libpq_means_or_is_refused() {
        let ca = || PathBuf::from("/etc/ca.pem");
        for (query, rest, trust) in [
            ("", "", Trust::Prefer),
            ("?sslmode=prefer", "", Trust::Prefer),
            (
                "?application_name=a&sslmode=disable&options=-cx%3Dy",
                "?application_name=a&options=-cx%3Dy",
                Trust::Plain,
            ),
            ("?sslmode=disable&sslrootcert=/etc/ca.pem", "", Trust::Plain),
            ("?sslmode=require", "", Trust::Anybody),
            ("?sslmode=require&sslrootcert=%2Fetc%2Fca.pem", "", Trust::Chain(ca())),
            ("?sslmode=verify-ca&sslrootcert=/etc/ca.pem", "", Trust::Chain(ca())),
            ("?sslmode=verify-full&sslrootcert=/etc/ca.pem", "", Trust::Name(Some(ca()))),
            ("?sslrootcert=/etc/ca.pem", "", Trust::Name(Some(ca()))),
            ("?sslmode=verify-full", "", Trust::Name(None)),
            ("?sslrootcert=system", "", Trust::Name(None)),
        ] {
            assert_eq!(read(query), Ok((rest.to_owned(), trust)), "{query}");
        }
        for (query, wrong) in [
            ("?sslmode=allow", "one of disable"),
            ("?sslmode=", "one of disable"),
            ("?sslmode=prefer&sslrootcert=/etc/ca.pem", "write verify-full"),
            ("?sslmode=verify-ca", "set sslrootcert"),
            ("?sslmode=verify-ca&sslrootcert=system", "use sslmode=verify-full"),
            ("?sslmode=require&sslrootcert=system", "use sslmode=verify-full"),
            ("?sslcert=a.pem", "sslcert"),
            ("?word@db/c", "written %3F"),
        ] {
            let error = read(query).unwrap_err();
            assert!(error.contains(wrong), "{query}: {error}");
        }
    }

    #[test]
    fn authorities_are_added_where_none_are_named() {
        let file = Path::new("/etc/our ca&.pem");
        for (url, with) in [
            ("postgres://db", "postgres://db?sslrootcert=/etc/our%20ca%26.pem"),
            ("postgres://db?a=b", "postgres://db?a=b&sslrootcert=/etc/our%20ca%26.pem"),
            ("postgres://db?sslrootcert=x", "postgres://db?sslrootcert=x"),
        ] {
            assert_eq!(with_authorities(url, file), with);
        }
        let trust = with_authorities("postgres://db", file).parse::<PostgresAddress>().unwrap().trust;
        assert_eq!(trust, Trust::Name(Some(file.to_path_buf())));
    }

    #[test]
    fn a_file_without_certificates_is_no_authority() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, wrong) in [
            ("", "no PEM certificate"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", ""),
        ] {
            std::fs::write(file.path(), text).unwrap();
            let error = authorities_in(file.path()).unwrap_err().to_string();
            assert!(
                error.starts_with(&file.path().display().to_string()) && error.contains(wrong),
                "{error}"
            );
        }
        assert!(authorities_in(Path::new("nowhere.pem")).unwrap_err().to_string().contains("No such file"));
    }
}
