//! The client's address: the socket's, or what proxies say whose word is taken.
//!
//! Invariant: nobody but a trusted proxy can choose the address that a request is counted under.

use axum::http::{Extensions, HeaderMap};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The other end of the connection; the server puts it into each request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// Proxies in a row that are followed. Real chains have two or three.
const HOPS_MAX: usize = 16;
const FORWARDED_FOR: &str = "x-forwarded-for";

/// The nearest address that is not a trusted proxy's. Each proxy appends whom it was called by, so
/// the list is read from its end, and what stands before a stranger's word is not looked at.
pub fn address(extensions: &Extensions, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let peer = extensions.get::<Peer>().map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.0);
    let mut address = peer.to_canonical();
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    let said = headers.get_all(FORWARDED_FOR).iter().rev();
    let said = said.flat_map(|value| value.to_str().unwrap_or_default().rsplit(','));
    for hop in said.take(HOPS_MAX) {
        if !is_trusted(address) {
            break;
        }
        let Some(before) = parse(hop.trim()) else { break };
        address = before.to_canonical();
    }
    address
}

/// Some proxies add the port.
fn parse(hop: &str) -> Option<IpAddr> {
    let with_port = || hop.parse::<SocketAddr>().map(|address| address.ip());
    hop.parse().or_else(|_| with_port()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn seen(peer: &str, said: &[&str], trusted: &[&str]) -> String {
        let mut extensions = Extensions::new();
        extensions.insert(Peer(peer.parse().unwrap()));
        let mut headers = HeaderMap::new();
        for said in said {
            headers.append(FORWARDED_FOR, HeaderValue::from_str(said).unwrap());
        }
        let trusted: Vec<IpNet> = trusted.iter().map(|net| net.parse().unwrap()).collect();
        address(&extensions, &headers, &trusted).to_string()
    }

    #[test]
    fn a_stranger_cannot_choose_its_address() {
        assert_eq!(seen("192.0.2.1", &["203.0.113.9"], &[]), "192.0.2.1");
        assert_eq!(seen("192.0.2.1", &["203.0.113.9"], &["10.0.0.0/8"]), "192.0.2.1");
        let behind = |said: &[&str]| seen("10.0.0.1", said, &["10.0.0.0/8"]);
        assert_eq!(behind(&["203.0.113.9"]), "203.0.113.9");
        assert_eq!(behind(&["1.1.1.1, 203.0.113.9"]), "203.0.113.9", "the client's own word");
        assert_eq!(behind(&["1.1.1.1", "203.0.113.9"]), "203.0.113.9", "in two headers");
        assert_eq!(behind(&["203.0.113.9, 10.0.0.2"]), "203.0.113.9", "two proxies");
        assert_eq!(behind(&["203.0.113.9:4711, 10.0.0.2:80"]), "203.0.113.9");
        assert_eq!(behind(&["[2001:db8::1]:4711"]), "2001:db8::1");
        assert_eq!(behind(&["203.0.113.9, nonsense"]), "10.0.0.1");
        assert_eq!(behind(&[]), "10.0.0.1");
        assert_eq!(seen("::ffff:10.0.0.1", &["203.0.113.9"], &["10.0.0.0/8"]), "203.0.113.9");
    }
}
