//! A message between nodes as it travels: a line that says who sent it, and the text of the message.
//!
//! > `2 <node> <number> <second> <code>` LF text
//!
//! The code is the HMAC-SHA256 (RFC 2104) of everything else in hexadecimal, by a secret that the nodes
//! share: Redis and NOTIFY carry messages, and whoever else can reach them cannot make any. The number is the
//! sender's own and identifies duplicates; the second (Unix time) bounds how long a copy is worth something.
//! A packet of another version is not read.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use uuid::Uuid;

use super::message::{BusMessage, DecodeError};

/// The version that is sent and understood.
const VERSION: &str = "2";
/// The most bytes before the text.
pub(super) const HEADER_BYTES: usize = 2 + 33 + 21 + 21 + 65;
/// How far the sender's clock and this one may be apart, with the time on the way.
const MAX_AGE: Duration = Duration::from_secs(300);
/// What the keys are for, so that no other use of the same secret makes the same codes.
const PURPOSE: &[u8] = b"campanile: messages between nodes";

type Code = Hmac<Sha256>;

/// The secrets that nodes share.
#[derive(Clone)]
pub struct BusKeys(Arc<[Code]>);

impl BusKeys {
    /// The first of `secrets` signs, all of them verify. At least one.
    pub fn new<'s>(secrets: impl IntoIterator<Item = &'s str>) -> Self {
        let keyed = |key: &[u8]| Code::new_from_slice(key).expect("HMAC takes keys of any length");
        let derive = |secret: &str| {
            let key = keyed(secret.as_bytes()).chain_update(PURPOSE).finalize().into_bytes();
            keyed(&key)
        };
        Self(secrets.into_iter().map(derive).collect())
    }
}

/// A message with its sender.
#[derive(Debug, Clone)]
pub(super) struct Envelope {
    pub(super) from: Uuid,
    /// The sender's number of the message.
    pub(super) number: u64,
    pub(super) message: BusMessage,
}

/// Makes the packets of one node, and reads those of others.
#[derive(Clone)]
pub(super) struct Packets {
    node: Uuid,
    keys: BusKeys,
}

impl Packets {
    pub(super) fn new(node: Uuid, keys: BusKeys) -> Self {
        Self { node, keys }
    }

    /// Encodes the message number `number` of this node.
    pub(super) fn encode(&self, number: u64, message: &BusMessage) -> String {
        self.seal(number, unix_seconds(), &message.text())
    }

    /// The same in several packets, if its events are large.
    pub(super) fn encode_in_parts(&self, number: u64, message: &BusMessage) -> Vec<String> {
        let now = unix_seconds();
        message.texts().iter().map(|text| self.seal(number, now, text)).collect()
    }

    fn seal(&self, number: u64, second: u64, text: &str) -> String {
        let head = format!("{VERSION} {} {number} {second}", self.node.simple());
        let code =
            self.keys.0.first().map(|key| hex::encode(code_of(key, &head, text).finalize().into_bytes()));
        format!("{head} {}\n{text}", code.unwrap_or_default())
    }

    /// Reads a packet of any node.
    pub(super) fn decode(&self, packet: &str) -> Result<Envelope, DecodeError> {
        self.decode_at(packet, unix_seconds())
    }

    fn decode_at(&self, packet: &str, now: u64) -> Result<Envelope, DecodeError> {
        let (line, text) = packet.split_once('\n').ok_or(DecodeError::Malformed)?;
        match line.split(' ').next() {
            Some(VERSION) => {}
            Some(other) if !other.is_empty() && other.bytes().all(|b| b.is_ascii_digit()) => {
                return Err(DecodeError::Version);
            }
            _ => return Err(DecodeError::Malformed),
        }
        let (head, code) = line.rsplit_once(' ').ok_or(DecodeError::Malformed)?;
        let code = hex::decode(code).map_err(|_| DecodeError::Malformed)?;
        if !self.keys.0.iter().any(|key| code_of(key, head, text).verify_slice(&code).is_ok()) {
            return Err(DecodeError::Forged);
        }
        let mut fields = head.split(' ').skip(1);
        let mut field = || fields.next().ok_or(DecodeError::Malformed);
        let from = Uuid::parse_str(field()?).map_err(|_| DecodeError::Malformed)?;
        let number = field()?.parse().map_err(|_| DecodeError::Malformed)?;
        let second: u64 = field()?.parse().map_err(|_| DecodeError::Malformed)?;
        if now.abs_diff(second) > MAX_AGE.as_secs() {
            return Err(DecodeError::Stale);
        }
        Ok(Envelope { from, number, message: BusMessage::parse(text).ok_or(DecodeError::Malformed)? })
    }
}

fn code_of(key: &Code, head: &str, text: &str) -> Code {
    key.clone().chain_update(head).chain_update("\n").chain_update(text)
}

fn unix_seconds() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn packets(node: u128, secrets: &[&str]) -> Packets {
        Packets::new(Uuid::from_u128(node), BusKeys::new(secrets.iter().copied()))
    }

    fn sealed(packets: &Packets) -> String {
        packets.seal(9, NOW, &BusMessage::CheckAll.text())
    }

    fn error(packets: &Packets, packet: &str, now: u64) -> Option<DecodeError> {
        packets.decode_at(packet, now).err()
    }

    #[test]
    fn a_packet_says_who_sent_it_and_its_number() {
        let packet = packets(7, &["secret"]).encode(u64::MAX, &BusMessage::CheckAll);
        let (line, _) = packet.split_once('\n').unwrap();
        assert!(line.len() < HEADER_BYTES, "{line}");
        let envelope = packets(8, &["secret"]).decode(&packet).unwrap();
        assert_eq!((envelope.from, envelope.number), (Uuid::from_u128(7), u64::MAX));
        assert!(matches!(envelope.message, BusMessage::CheckAll));
    }

    #[test]
    fn the_first_secret_signs_and_all_verify() {
        let (old, new) = (packets(1, &["old"]), packets(2, &["new", "old"]));
        assert_eq!(error(&new, &sealed(&old), NOW), None);
        assert_eq!(error(&old, &sealed(&new), NOW), Some(DecodeError::Forged));
        let newest = packets(3, &["newest", "new"]);
        assert_eq!(error(&newest, &sealed(&new), NOW), None);
        assert_eq!(error(&newest, &sealed(&old), NOW), Some(DecodeError::Forged));
    }

    #[test]
    fn not_a_byte_can_be_changed() {
        let ours = packets(1, &["secret"]);
        let packet = sealed(&ours);
        for index in 0..packet.len() {
            let mut bytes = packet.clone().into_bytes();
            bytes[index] ^= 1;
            if let Ok(changed) = String::from_utf8(bytes) {
                assert!(ours.decode_at(&changed, NOW).is_err(), "{changed}");
            }
        }
        let without = packet.replace(packet.split([' ', '\n']).nth(4).unwrap(), "");
        assert_eq!(error(&ours, &without, NOW), Some(DecodeError::Forged));
    }

    #[test]
    fn a_copy_is_worth_nothing_after_five_minutes() {
        let ours = packets(1, &["secret"]);
        let packet = sealed(&ours);
        for (now, expected) in [
            (NOW + 300, None),
            (NOW - 300, None),
            (NOW + 301, Some(DecodeError::Stale)),
            (NOW - 301, Some(DecodeError::Stale)),
        ] {
            assert_eq!(error(&ours, &packet, now), expected);
        }
    }

    #[test]
    fn what_is_no_packet_is_refused() {
        let ours = packets(1, &["secret"]);
        let id = Uuid::nil().simple();
        let versions = [format!("1 {id} 1\n{{\"ping\":{{}}}}"), format!("3 {id} 1 more\nanything")];
        for packet in versions {
            assert_eq!(error(&ours, &packet, NOW), Some(DecodeError::Version), "{packet}");
        }
        for packet in ["", "\n", "hello", "2\n{}", &format!("2 {id} 1 2 xyz\n{{}}"), "x 1 2\n{}"] {
            assert_eq!(error(&ours, packet, NOW), Some(DecodeError::Malformed), "{packet}");
        }
        let empty = ours.seal(1, NOW, "{}");
        assert_eq!(error(&ours, &empty, NOW), Some(DecodeError::Malformed), "well signed, and no message");
    }
}
