//! The addresses that proxies report: `X-Forwarded-For`, or `Forwarded` (RFC 7239). Only the header that the
//! operator has named is read, because a proxy that writes one passes on what a stranger puts into the other.

use std::net::{IpAddr, Ipv6Addr};

use actix_web::http::header::HeaderMap;

use crate::config::ForwardedHeader;

/// The hops of a request, the nearest first; `None` for one whose address is hidden, unknown or malformed.
pub(super) fn hops(headers: &HeaderMap, header: ForwardedHeader) -> Vec<Option<IpAddr>> {
    let (name, address): (_, fn(&str) -> Option<IpAddr>) = match header {
        ForwardedHeader::XForwardedFor => ("x-forwarded-for", |hop| node(&unquoted(hop))),
        ForwardedHeader::Forwarded => ("forwarded", forwarded_for),
    };
    // What a stranger wrote into a line may be no text; the address that a proxy appended to it counts all the same.
    let lines: Vec<_> = headers.get_all(name).map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
    let hops = lines.iter().rev().flat_map(|line| split(line, b',').into_iter().rev());
    // An empty element is none (RFC 9110, section 5.6.1).
    hops.filter(|hop| !hop.trim().is_empty()).map(address).collect()
}

/// The `for` of one element of `Forwarded`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let pairs = split(element, b';').into_iter().filter_map(|pair| pair.split_once('='));
    let mut addresses = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
    let (_, value) = addresses.next()?;
    // Twice is a proxy that was deceived.
    if addresses.next().is_some() { None } else { node(&unquoted(value)) }
}

/// The parts of `text`, where a separator between quotes is none.
fn split(text: &str, separator: u8) -> Vec<&str> {
    let (mut parts, mut begin, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if byte == separator && !quoted => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    parts
}

fn unquoted(text: &str) -> String {
    let text = text.trim();
    let Some(inner) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else {
        return text.to_owned();
    };
    let mut escaped = false;
    let is_kept = |c: &char| {
        escaped = *c == '\\' && !escaped;
        !escaped
    };
    inner.chars().filter(is_kept).collect()
}

/// An address, perhaps with a port: `192.0.2.1:80`, `[2001:db8::1]:80`, `[2001:db8::1]`, `2001:db8::1`. IPv4
/// as IPv4 however it is written.
fn node(text: &str) -> Option<IpAddr> {
    let address = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            let plain = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
            IpAddr::V6(address.parse::<Ipv6Addr>().ok().filter(|_| plain)?)
        }
        None => text.parse().ok().or_else(|| {
            let (address, port) = text.split_once(':')?;
            address.parse().ok().filter(|_| is_port(port))
        })?,
    };
    Some(address.to_canonical())
}

/// A number, or a name that hides one (RFC 7239, section 6).
fn is_port(text: &str) -> bool {
    let hidden = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    match text.strip_prefix('_') {
        Some(name) => !name.is_empty() && name.bytes().all(hidden),
        None => (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    fn read(header: ForwardedHeader, lines: &[&str]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        let name = match header {
            ForwardedHeader::XForwardedFor => "x-forwarded-for",
            ForwardedHeader::Forwarded => "forwarded",
        };
        for line in lines {
            let value = HeaderValue::from_bytes(line.as_bytes()).expect("a header");
            headers.append(HeaderName::from_static(name), value);
        }
        let hops = hops(&headers, header).into_iter();
        hops.map(|hop| hop.map_or_else(|| "?".to_owned(), |address| address.to_string())).collect()
    }

    #[test]
    fn addresses_come_with_and_without_ports_brackets_and_quotes() {
        for (text, address) in [
            ("192.0.2.1", "192.0.2.1"),
            (" 192.0.2.1:41234 ", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("\"[2001:db8::1]:443\"", "2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("[::ffff:192.0.2.1]:80", "192.0.2.1"),
            ("192.0.2.1:_hidden", "192.0.2.1"),
            ("unknown", "?"),
            ("_hidden", "?"),
            ("192.0.2.1:", "?"),
            ("192.0.2.1:x", "?"),
            ("192.0.2.1:123456", "?"),
            ("[192.0.2.1]:80", "?"),
            ("[2001:db8::1", "?"),
            ("[2001:db8::1]443", "?"),
            ("192.0.2.1 198.51.100.1", "?"),
        ] {
            assert_eq!(read(ForwardedHeader::XForwardedFor, &[text]), [address], "{text}");
        }
    }

    #[test]
    fn the_nearest_hop_comes_first() {
        let lines = ["192.0.2.1, 192.0.2.2:80", "[2001:db8::3]:1"];
        assert_eq!(read(ForwardedHeader::XForwardedFor, &lines), ["2001:db8::3", "192.0.2.2", "192.0.2.1"]);
        let empty = [",", "192.0.2.1,, ,192.0.2.2 ,", ""];
        assert_eq!(read(ForwardedHeader::XForwardedFor, &empty), ["192.0.2.2", "192.0.2.1"]);
        let no_text = ["192.0.2.1", "\u{e9}, 192.0.2.2"];
        assert_eq!(read(ForwardedHeader::XForwardedFor, &no_text), ["192.0.2.2", "?", "192.0.2.1"]);
        let lines = [
            "for=192.0.2.1, For=\"[2001:db8::2]:4711\";proto=http;by=203.0.113.43",
            "host=\"a,b;for=192.0.2.9\" ; FOR = \"192.0.2.\\3:80\"",
        ];
        assert_eq!(read(ForwardedHeader::Forwarded, &lines), ["192.0.2.3", "2001:db8::2", "192.0.2.1"]);
    }

    #[test]
    fn what_hides_an_address_is_a_hop_without_one() {
        for element in [
            "for=unknown",
            "for=_gazonk",
            "for=\"_gazonk:80\"",
            "proto=https",
            "for",
            "for=",
            "for=192.0.2.1;for=192.0.2.2",
            "for=\"192.0.2.1",
            "for=\"192.0.2.1, for=192.0.2.2\"",
        ] {
            assert_eq!(read(ForwardedHeader::Forwarded, &[element]), ["?"], "{element}");
        }
    }
}
