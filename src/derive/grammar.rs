//! The grammar of the ConfigMap that maps VIPs to Services: that of kube-keepalived-vip, extended.
//!
//! ```text
//! key   = IPv4 | IPv6 with "-" for ":"                 10.87.2.50, fd00--50
//! value = "" | entry { "," entry }                     "" is a VIP that only floats
//! entry = NAMESPACE "/" SERVICE [ ":" PORT ] [ ":" METHOD ]
//! ```
//!
//! Pure parsing; whether the address is allowed and the Service exists is asked elsewhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::Mode;
use crate::model::ObjectKey;

/// One entry of a value: a Service, or one port of it, and how it is to be forwarded.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The Service.
    pub service: ObjectKey,
    /// The Service port; `None` means all of them.
    pub port: Option<u16>,
    /// The forwarding method, when the entry names one.
    pub method: Option<Method>,
}

impl Entry {
    /// The entry as it is written with the method of `mode`.
    pub fn written_with(&self, mode: Mode) -> String {
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}{port}:{}", self.service, mode.name().to_uppercase())
    }
}

/// A forwarding method of the ConfigMap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Method(Mode);

/// The methods, kube-keepalived-vip's first. Its DR is mode dsr, which asks nothing of the pods.
const METHODS: [(&str, Mode); 6] = [
    ("NAT", Mode::Nat),
    ("DR", Mode::Dsr),
    ("PROXY", Mode::Proxy),
    ("DSR", Mode::Dsr),
    ("TUNNEL", Mode::Tunnel),
    ("ANNOUNCE", Mode::Announce),
];

impl Method {
    /// The mode that it stands for.
    pub fn mode(self) -> Mode {
        self.0
    }
}

/// Reads a key as a VIP.
///
/// # Errors
/// Says what is wrong with the key, such as `not an IP address (octet 999 is over 255)`.
pub fn key(text: &str) -> Result<IpAddr, String> {
    let text = text.trim();
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Ok(address.into());
    }
    if let Ok(address) = text.replace('-', ":").parse::<Ipv6Addr>() {
        return Ok(address.into());
    }
    Err(format!("not an IP address{}", why_no_address(text)))
}

/// How the key for `vip` is written.
pub fn key_of(vip: IpAddr) -> String {
    vip.to_string().replace(':', "-")
}

/// The most likely reason why `text` is no address, in parentheses, or nothing.
fn why_no_address(text: &str) -> String {
    let octets: Vec<&str> = text.split('.').collect();
    let numeric = octets.iter().all(|o| !o.is_empty() && o.bytes().all(|b| b.is_ascii_digit()));
    if text.contains('/') {
        return " (a VIP is one address, without a prefix length)".into();
    }
    if !numeric || octets.len() < 2 {
        return String::new();
    }
    if octets.len() != 4 {
        return format!(" ({} octets instead of 4)", octets.len());
    }
    let bad = |o: &&&str| o.parse::<u8>().is_err() || (o.len() > 1 && o.starts_with('0'));
    match octets.iter().find(bad) {
        Some(octet) if octet.starts_with('0') => format!(" (octet {octet} has a leading zero)"),
        Some(octet) => format!(" (octet {octet} is over 255)"),
        None => String::new(),
    }
}

/// Reads a value as its entries, in the order written; an empty value has none.
///
/// Each entry stands for itself: a bad one is an error beside the good ones.
pub fn value(text: &str) -> Vec<Result<Entry, String>> {
    if text.trim().is_empty() {
        return Vec::new();
    }
    text.split(',').map(|part| entry(part.trim())).collect()
}

/// The Services that the entries of `text` are of, whatever else is wrong with them.
pub fn services(text: &str) -> impl Iterator<Item = ObjectKey> {
    text.split(',').filter_map(|entry| service(entry.trim().split(':').next()?))
}

/// Reads one entry.
fn entry(text: &str) -> Result<Entry, String> {
    let mut parts = text.split(':');
    let object = parts.next().unwrap_or_default();
    let service = service(object).ok_or_else(|| {
        format!("`{text}` is not namespace/service, as in `default/nginx`, `default/nginx:80` or `default/nginx:NAT`")
    })?;
    let mut entry = Entry { service, port: None, method: None };
    for part in parts {
        let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if digits && entry.port.is_none() && entry.method.is_none() {
            entry.port = Some(port(part, text)?);
        } else if !digits && entry.method.is_none() {
            entry.method = Some(method(part, text)?);
        } else {
            return Err(format!(
                "`{text}`: after the Service come a port and then a method, each at most once"
            ));
        }
    }
    Ok(entry)
}

fn service(text: &str) -> Option<ObjectKey> {
    let label =
        |s: &str| s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.');
    ObjectKey::parse(text).filter(|key| label(&key.namespace) && label(&key.name))
}

fn port(text: &str, entry: &str) -> Result<u16, String> {
    let number = text.parse::<u16>().ok().filter(|port| *port > 0);
    number.ok_or_else(|| format!("`{entry}`: port {text} is not 1 to 65535"))
}

fn method(text: &str, entry: &str) -> Result<Method, String> {
    let known = METHODS.iter().find(|(name, _)| *name == text);
    known.map(|(_, mode)| Method(*mode)).ok_or_else(|| {
        let names: Vec<&str> = METHODS.iter().map(|(name, _)| *name).collect();
        let no_port = text.is_empty() || names.iter().any(|name| name.eq_ignore_ascii_case(text));
        let port = if no_port { "" } else { "; a port is written as its number" };
        format!("`{entry}`: unknown method `{text}`; write one of {}, or none{port}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_key(text: &str, want: Result<&str, &str>) {
        let want = want.map(|a| a.parse().expect("an address")).map_err(str::to_owned);
        assert_eq!(key(text), want, "key {text:?}");
    }

    #[test]
    fn keys_are_addresses_of_both_families() {
        check_key("10.87.2.50", Ok("10.87.2.50"));
        check_key("fd00--50", Ok("fd00::50"));
        check_key("fd00-87-2--50", Ok("fd00:87:2::50"));
        check_key("10.87.2.999", Err("not an IP address (octet 999 is over 255)"));
        check_key("10.87.2", Err("not an IP address (3 octets instead of 4)"));
        check_key("10.87.2.050", Err("not an IP address (octet 050 has a leading zero)"));
        check_key("10.87.2.0-24", Err("not an IP address"));
        check_key("nginx", Err("not an IP address"));
    }

    #[test]
    fn what_is_written_anew_is_read_as_that() {
        for text in ["10.87.2.50", "fd00:87:2::50"] {
            let vip = text.parse().expect("an address");
            assert_eq!(key(&key_of(vip)), Ok(vip));
        }
        for text in ["default/nginx", "default/nginx:80"] {
            let entry = |text: &str| value(text).remove(0).expect("an entry");
            for mode in [Mode::Nat, Mode::Dsr] {
                let expected = Entry { method: Some(Method(mode)), ..entry(text) };
                assert_eq!(entry(&entry(text).written_with(mode)), expected);
            }
        }
    }

    #[test]
    fn a_service_is_known_from_a_wrong_entry() {
        let found: Vec<String> =
            services("default/nginx:nat, shop/web:80/tcp,a/b/c,nginx,").map(|key| key.to_string()).collect();
        assert_eq!(found, ["default/nginx", "shop/web"]);
    }

    type Wanted = Result<(&'static str, Option<u16>, Option<Method>), &'static str>;

    fn check_value(text: &str, want: &[Wanted]) {
        let got = value(text);
        assert_eq!(got.len(), want.len(), "value {text:?}: {got:?}");
        for (got, want) in got.iter().zip(want) {
            match (got, want) {
                (Ok(got), Ok((service, port, method))) => {
                    assert_eq!(
                        (got.service.to_string(), got.port, got.method),
                        ((*service).to_owned(), *port, *method)
                    );
                }
                (Err(got), Err(want)) => assert!(got.contains(want), "value {text:?}: {got} lacks {want}"),
                _ => panic!("value {text:?}: {got:?} instead of {want:?}"),
            }
        }
    }

    #[test]
    fn values_are_lists_of_services_ports_and_methods() {
        check_value("", &[]);
        check_value("  ", &[]);
        check_value("default/nginx", &[Ok(("default/nginx", None, None))]);
        check_value(" default/nginx ", &[Ok(("default/nginx", None, None))]);
        check_value("default/nginx:NAT", &[Ok(("default/nginx", None, Some(Method(Mode::Nat))))]);
        check_value("default/nginx:80", &[Ok(("default/nginx", Some(80), None))]);
        check_value("default/nginx:80:DR", &[Ok(("default/nginx", Some(80), Some(Method(Mode::Dsr))))]);
        check_value(
            "a/b,c/d:PROXY",
            &[Ok(("a/b", None, None)), Ok(("c/d", None, Some(Method(Mode::Proxy))))],
        );
    }

    #[test]
    fn what_the_original_let_through_is_refused() {
        check_value("a/b/c", &[Err("is not namespace/service")]);
        check_value("nginx", &[Err("is not namespace/service")]);
        check_value("a/b:XNATX", &[Err("unknown method `XNATX`")]);
        check_value("a/b:nat", &[Err("unknown method `nat`")]);
        check_value("a/b:http", &[Err("ANNOUNCE, or none; a port is written as its number")]);
        check_value("a/b:0", &[Err("port 0 is not 1 to 65535")]);
        check_value("a/b:70000", &[Err("port 70000 is not")]);
        check_value("a/b:NAT:80", &[Err("each at most once")]);
        check_value("a/b:", &[Err("unknown method ``")]);
        check_value("a/b,", &[Ok(("a/b", None, None)), Err("is not namespace/service")]);
    }
}
