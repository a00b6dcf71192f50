//! The names that are asked for, and what an answer to each of them has to be.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::{Result, bail, ensure};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};

/// The zone beneath which all names are.
pub(crate) const ZONE: &str = "bench.example";
/// How many names `h0`, `h1`, … it has beside the wildcard.
pub(crate) const HOSTS: u16 = 1_000;
/// The address of every other name.
pub(crate) const WILDCARD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Which names are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The same [`HOSTS`] names over and over.
    Known,
    /// Random names: 64 random bits each, so that nobody has seen one before.
    Unique,
    /// So many names, each once before any comes again, neighbours far apart.
    Many(u32),
}

/// An endless supply of queries.
#[derive(Debug)]
pub(crate) struct Names {
    kind: Kind,
    next: u16,
    turn: u32,
    random: Xoshiro256PlusPlus,
    zone: Vec<u8>,
}

impl Names {
    pub(crate) fn new(kind: Kind) -> Self {
        let mut zone = Vec::new();
        for label in ZONE.split('.') {
            zone.push(label.len() as u8);
            zone.extend_from_slice(label.as_bytes());
        }
        zone.push(0);
        Self {
            kind,
            next: 0,
            turn: 0,
            random: Xoshiro256PlusPlus::seed_from_u64(rand::random()),
            zone,
        }
    }

    /// Writes the next query behind its length (RFC 1035 §4.2.2) and gives the address that answers it: recursion
    /// desired, type A, no OPT record.
    pub(crate) fn write(&mut self, id: u16, framed: &mut Vec<u8>) -> Ipv4Addr {
        framed.clear();
        framed.extend_from_slice(&[0, 0]);
        framed.extend_from_slice(&id.to_be_bytes());
        framed.extend_from_slice(&[0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
        let address = match self.kind {
            Kind::Known => {
                let host = self.next;
                self.next = (host + 1) % HOSTS;
                push_host(host, framed);
                host_address(host)
            }
            Kind::Unique => {
                push_hexadecimal(self.random.random(), framed);
                WILDCARD
            }
            Kind::Many(count) => {
                push_hexadecimal(self.one_of_many(count), framed);
                WILDCARD
            }
        };
        framed.extend_from_slice(&self.zone);
        framed.extend_from_slice(&[0, 1, 0, 1]);
        let length = (framed.len() - 2) as u16;
        framed[..2].copy_from_slice(&length.to_be_bytes());
        address
    }

    /// So many queries as dnsperf reads them.
    pub(crate) fn text(&mut self, count: u32) -> String {
        let mut text = String::new();
        for _ in 0..count {
            // Writing to a String cannot fail.
            let _ = match self.kind {
                Kind::Known => {
                    self.next = (self.next + 1) % HOSTS;
                    writeln!(text, "h{}.{ZONE} A", self.next)
                }
                Kind::Unique => writeln!(text, "{:016x}.{ZONE} A", self.random.random::<u64>()),
                Kind::Many(count) => writeln!(text, "{:016x}.{ZONE} A", self.one_of_many(count)),
            };
        }
        text
    }
}

impl Names {
    /// The next of `count` numbers: a stride that is prime comes by each of them before it comes by one again.
    fn one_of_many(&mut self, count: u32) -> u64 {
        let number = u64::from(self.turn) * STRIDE % u64::from(count);
        self.turn = (self.turn + 1) % count;
        number
    }
}

/// The address of host `number`.
pub(crate) fn host_address(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 77, high, low)
}

/// The address of the name that begins with this label.
pub(crate) fn address_of(label: &[u8]) -> Ipv4Addr {
    let Some(digits) = label.strip_prefix(b"h") else {
        return WILDCARD;
    };
    let number = std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok());
    match number {
        Some(number) if number < HOSTS => host_address(number),
        _ => WILDCARD,
    }
}

/// Whether `reply` answers `query`, both without length, with one record: this address.
pub(crate) fn check(query: &[u8], reply: &[u8], address: Ipv4Addr) -> Result<()> {
    ensure!(reply.len() >= HEADER, "{} octets only", reply.len());
    ensure!(reply[..2] == query[..2], "the id of another query");
    ensure!(reply[2] & 0xf8 == 0x80, "no reply to a query");
    ensure!(reply[2] & 0x02 == 0, "truncated");
    ensure!(
        reply[3].trailing_zeros() >= 4,
        "response code {}",
        reply[3] & 0x0f
    );
    ensure!(reply[4..6] == [0, 1], "not one question");
    ensure!(reply[6..8] == [0, 1], "not one answer");
    let question = &query[HEADER..];
    let Some((asked, answer)) = reply[HEADER..].split_at_checked(question.len()) else {
        bail!("no question");
    };
    ensure!(asked == question, "another question");
    let Some(fixed) = skip_name(answer) else {
        bail!("an answer without name");
    };
    // Type, class, TTL and length of an address (RFC 1035 §4.1.3).
    ensure!(fixed.len() >= 14, "an answer that is cut off");
    ensure!(fixed[..4] == [0, 1, 0, 1], "an answer of another type");
    ensure!(fixed[8..10] == [0, 4], "an answer of another length");
    ensure!(fixed[10..14] == address.octets(), "another address");
    Ok(())
}

/// What follows the name at the start.
fn skip_name(mut bytes: &[u8]) -> Option<&[u8]> {
    loop {
        let (&length, rest) = bytes.split_first()?;
        match length {
            0 => return Some(rest),
            0xc0.. => return rest.get(1..),
            _ => bytes = rest.get(usize::from(length)..)?,
        }
    }
}

fn push_host(number: u16, message: &mut Vec<u8>) {
    let label = message.len();
    message.extend_from_slice(&[0, b'h']);
    let mut divisor = 1;
    while number / divisor >= 10 {
        divisor *= 10;
    }
    while divisor > 0 {
        message.push(b'0' + (number / divisor % 10) as u8);
        divisor /= 10;
    }
    message[label] = (message.len() - label - 1) as u8;
}

fn push_hexadecimal(number: u64, message: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    message.push(16);
    for shift in (0..16).rev() {
        message.push(DIGITS[(number >> (4 * shift) & 0xf) as usize]);
    }
}

const HEADER: usize = 12;

/// A prime, greater than any number of names.
const STRIDE: u64 = 4_294_967_291;

#[cfg(test)]
mod tests {
    use lab::dns;

    use super::*;

    #[test]
    fn each_of_many_names_comes_once_before_any_comes_again() {
        let mut names = Names::new(Kind::Many(1_000));
        let round = |names: &mut Names| -> std::collections::BTreeSet<u64> {
            (0..1_000).map(|_| names.one_of_many(1_000)).collect()
        };

        assert_eq!(round(&mut names), (0..1_000).collect());
        assert_eq!(round(&mut names).len(), 1_000);
    }

    #[test]
    fn a_query_is_read_as_what_it_asks_for() {
        let mut names = Names::new(Kind::Known);
        let mut framed = Vec::new();

        for number in 0..HOSTS {
            let address = names.write(number, &mut framed);

            let message = dns::parse(&framed[2..]).unwrap();
            assert_eq!(message.metadata.id, number);
            assert!(message.metadata.recursion_desired);
            assert_eq!(dns::question_name(&message), format!("h{number}.{ZONE}"));
            assert_eq!(address, host_address(number));
            assert_eq!(address_of(format!("h{number}").as_bytes()), address);
        }
    }

    #[test]
    fn unique_names_differ() {
        let mut names = Names::new(Kind::Unique);
        let (mut first, mut second) = (Vec::new(), Vec::new());

        names.write(1, &mut first);
        let address = names.write(1, &mut second);

        assert_ne!(first, second);
        assert_eq!(address, WILDCARD);
        let name = dns::question_name(&dns::parse(&second[2..]).unwrap());
        assert_eq!(name.len(), 16 + 1 + ZONE.len());
        assert_eq!(address_of(&name.as_bytes()[..16]), WILDCARD);
    }

    #[test]
    fn the_right_answer_is_told_from_wrong_ones() {
        let mut framed = Vec::new();
        let address = Names::new(Kind::Known).write(7, &mut framed);
        let query = &framed[2..];
        let right = dns::address_reply(query, address).unwrap();
        let damaged = |index: usize, value: u8| {
            let mut reply = right.clone();
            reply[index] = value;
            check(query, &reply, address)
        };

        check(query, &right, address).unwrap();
        assert!(check(query, query, address).is_err(), "the query itself");
        assert!(check(query, &right, WILDCARD).is_err(), "another address");
        assert!(damaged(1, 8).is_err(), "another id");
        assert!(damaged(3, 0x82).is_err(), "SERVFAIL");
        assert!(damaged(7, 0).is_err(), "no answer");
        assert!(damaged(13, b'i').is_err(), "another question");
        for length in 0..right.len() {
            assert!(check(query, &right[..length], address).is_err(), "{length}");
        }
    }
}
