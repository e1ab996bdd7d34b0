//! Slots of a cluster: which one a key lies in, and what a node says about who serves which. No I/O.

use super::address::Endpoint;
use std::fmt::{self, Write as _};

/// Slots of any cluster.
pub(super) const SLOTS: u16 = 16_384;

/// The checksum that places keys: CRC-16 with the polynomial 0x1021, begun at 0.
#[derive(Debug, Clone, Copy, Default)]
struct Crc(u16);

/// What each byte does to it.
const TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = n << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[n as usize] = crc;
        n += 1;
    }
    table
};

impl Crc {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let [high, low] = self.0.to_be_bytes();
            self.0 = u16::from_be_bytes([low, 0]) ^ TABLE[usize::from(high ^ byte)];
        }
    }
}

impl fmt::Write for Crc {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.add(text.as_bytes());
        Ok(())
    }
}

/// The slot of all keys with this hash tag.
pub(super) fn slot_of_tag(tag: impl fmt::Display) -> u16 {
    let mut crc = Crc::default();
    // The checksum takes everything.
    write!(crc, "{tag}").unwrap_or_default();
    crc.0 % SLOTS
}

/// The slot of a key that has a hash tag, as all of ours do.
pub(super) fn slot_of_key(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or(key, |(tag, _)| tag);
    slot_of_tag(tag)
}

/// What a node says about a primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) endpoint: Endpoint,
    /// The same server by its other name, if it has two.
    pub(super) also: Option<Endpoint>,
    /// Of two who claim a slot, the greater one has it.
    pub(super) epoch: u64,
    /// First and last slots.
    pub(super) slots: Vec<(u16, u16)>,
    /// Whether it is gone, in the eyes of the others.
    pub(super) is_failed: bool,
}

/// The primaries in the answer of `CLUSTER NODES`, which `from` gave.
pub(super) fn claims(answer: &str, from: &Endpoint, by_name: bool) -> Option<Vec<Claim>> {
    let mut claims = Vec::new();
    for line in answer.lines().filter(|line| !line.is_empty()) {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, address, flags, _, _, _, epoch, _, slots @ ..] = fields.as_slice() else { return None };
        let is = |flag: &str| flags.split(',').any(|other| other == flag);
        if !is("master") || is("noaddr") || is("handshake") {
            continue;
        }
        // `address:port@bus[,name]`; the address is empty where a node does not know its own.
        let (address, name) = match address.split_once(',') {
            Some((address, more)) => (address, more.split(',').next().filter(|name| !name.is_empty())),
            None => (*address, None),
        };
        let (host, port) = address.split_once('@')?.0.rsplit_once(':')?;
        let port = port.parse().ok()?;
        let host = match (host, from) {
            ("", Endpoint::Tcp(host, _)) => host,
            ("", Endpoint::Unix(_)) => return None,
            (host, _) => host,
        };
        let numbered = Endpoint::Tcp(host.to_owned(), port);
        let named = name.map(|name| Endpoint::Tcp(name.to_owned(), port));
        let (endpoint, also) = match named {
            // A certificate is mostly for the name.
            Some(named) if by_name => (named, Some(numbered)),
            named => (numbered, named),
        };
        // `[…` are moves under way.
        let range = |text: &&str| {
            let (from, to) = text.split_once('-').unwrap_or((text, text));
            let (from, to) = (from.parse().ok()?, to.parse().ok()?);
            (from <= to && to < SLOTS).then_some((from, to))
        };
        let slots = slots.iter().filter(|text| !text.starts_with('[')).map(range);
        let slots = slots.collect::<Option<Vec<_>>>()?;
        claims.push(Claim { endpoint, also, epoch: epoch.parse().ok()?, slots, is_failed: is("fail") });
    }
    Some(claims)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lie_where_redis_puts_them() {
        // As `CLUSTER KEYSLOT` says.
        assert_eq!(slot_of_key("123456789"), 12_739);
        assert_eq!(slot_of_key("foo"), 12_182);
        assert_eq!(slot_of_key("et:{foo}:meta"), 12_182);
        assert_eq!(slot_of_tag(format_args!("{}/{}", "acme", "s1")), slot_of_key("et:{acme/s1}:log"));
    }

    #[test]
    fn primaries_are_read_with_their_slots_and_without_moves() {
        let told = "a 10.0.0.1:6379@16379 master - 0 1 7 connected 0-5460 5462 [9->-b]\n\
                    b 10.0.0.2:6379@16379,two master,fail - 0 1 8 disconnected\n\
                    c :6380@16380,,shard-id=x myself,master - 0 0 3 connected 5461\n\
                    d 10.0.0.4:6379@16379 slave a 0 1 7 connected\n\
                    e :0@0 master,noaddr - 0 0 0 disconnected\n";
        let from = Endpoint::Tcp("h".into(), 1);
        let all = claims(told, &from, true).unwrap();
        let tcp = |host: &str, port| Endpoint::Tcp(host.to_owned(), port);
        assert_eq!(all.len(), 3);
        assert_eq!((&all[0].endpoint, all[0].epoch), (&tcp("10.0.0.1", 6379), 7));
        assert_eq!(all[0].slots, [(0, 5460), (5462, 5462)]);
        assert_eq!((&all[1].endpoint, &all[1].also), (&tcp("two", 6379), &Some(tcp("10.0.0.2", 6379))));
        assert!(all[1].is_failed && all[1].slots.is_empty());
        assert_eq!((&all[2].endpoint, all[2].slots.as_slice()), (&tcp("h", 6380), &[(5461, 5461)][..]));
        assert_eq!(claims("nonsense", &from, true), None);
    }
}
