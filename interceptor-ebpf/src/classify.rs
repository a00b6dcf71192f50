//! The verdict on a packet: which rule takes it, or the reason why it passes.

use crate::Address;
use crate::headers::{Bytes, Headers};
use crate::protocol;
use crate::reason::Reason;
use crate::rules::{self, Destination, NO_RULE, NO_TABLE};

/// The port of DNS where a rule names none (RFC 1035 §4.2).
pub const DNS_PORT: u16 = 53;

/// The rules as the verdict needs them: maps in the kernel, tables on the host.
pub trait Rules {
    /// The entry for exactly `address`, or of the longest prefix that covers it, or [`Destination::UNCOVERED`].
    fn destination(&self, address: &Address) -> Destination;

    /// The rule for a port of a port table.
    fn port(&self, table: u32, protocol: u8, port: u16) -> Option<u32>;
}

/// A packet that a rule takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// The rule's number.
    pub rule: u32,
    /// The policy under which the kernel may answer; 0 where only user space does.
    pub policy: u32,
    /// The packet's headers.
    pub headers: Headers,
}

/// The rule that takes the packet whose IP header begins at `offset`, or the reason why it passes.
#[inline(always)]
pub fn classify<B: Bytes + ?Sized, R: Rules>(
    bytes: &B,
    offset: usize,
    rules: &R,
) -> Result<Match, Reason> {
    let (version, headers) = Headers::parse_with_version(bytes, offset)?;
    // Such an address in an IPv6 header is not the IPv4 one, which rules and prefilter mean.
    if version == 6 && headers.destination.is_v4() {
        return Err(Reason::NoRule);
    }
    let destination = &headers.destination;
    let Some(rule) = find(
        destination,
        headers.protocol,
        headers.destination_port,
        rules,
    ) else {
        return Err(Reason::NoRule);
    };
    Ok(Match {
        rule: rules::number(rule),
        policy: rules::policy(rule),
        headers,
    })
}

/// The rule for a packet of `protocol` to `port` of that destination, with the policy under which the kernel may answer
/// the packet.
#[inline(always)]
pub fn find<R: Rules>(destination: &Address, protocol: u8, port: u16, rules: &R) -> Option<u32> {
    let destination = rules.destination(destination);
    if matches!(protocol, protocol::TCP | protocol::UDP)
        && destination.table != NO_TABLE
        && let Some(rule) = rules.port(destination.table, protocol, port)
    {
        return Some(rule);
    }
    let rule = match protocol {
        protocol::TCP => destination.tcp,
        protocol::UDP if port == DNS_PORT || destination.udp == NO_RULE => destination.udp,
        protocol::UDP => rules::number(destination.udp),
        protocol::ICMP | protocol::ICMPV6 => destination.icmp,
        _ => destination.other,
    };
    (rule != NO_RULE).then_some(rule)
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;
    use crate::rules::ANY_TABLE;
    use crate::testing::{SERVER_V4, icmp, server_v4, server_v6, tcp, udp, v4, v6};

    const TCP_RULE: u32 = 1;
    const UDP_RULE: u32 = 2;
    const ICMP_RULE: u32 = 3;
    const OTHER_RULE: u32 = 4;
    const PORT_RULE: u32 = 5;

    /// Every protocol of the server has a rule of its own.
    const COVERED: Destination = Destination {
        table: NO_TABLE,
        tcp: TCP_RULE,
        udp: UDP_RULE,
        icmp: ICMP_RULE,
        other: OTHER_RULE,
    };

    #[test]
    fn each_protocol_has_its_rule() {
        let tables = Tables::covering(COVERED);
        for (packet, rule) in [
            (v4(protocol::TCP, &[], &tcp()), TCP_RULE),
            (v4(protocol::UDP, &[], &udp()), UDP_RULE),
            (v4(protocol::ICMP, &[], &icmp(8, 7)), ICMP_RULE),
            (v4(47, &[], &[]), OTHER_RULE),
            (v6(&[], protocol::TCP, &tcp()), TCP_RULE),
            (v6(&[], protocol::UDP, &udp()), UDP_RULE),
            (v6(&[], protocol::ICMPV6, &icmp(128, 7)), ICMP_RULE),
            (v6(&[], 47, &[]), OTHER_RULE),
        ] {
            assert_eq!(rule_for(&packet, &tables), Ok(rule));
        }
    }

    #[test]
    fn a_match_comes_with_the_headers() {
        let packet = v6(&[(protocol::DESTINATION_OPTIONS, 8)], protocol::UDP, &udp());
        let Match { headers, .. } =
            classify(packet.as_slice(), 0, &Tables::covering(COVERED)).unwrap();
        assert_eq!(headers.destination, server_v6());
        assert_eq!(headers.transport, 48);
    }

    #[test]
    fn a_rule_for_the_port_goes_before_one_for_the_protocol() {
        let mut tables = Tables::covering(Destination {
            table: 7,
            ..COVERED
        });
        tables.ports.insert((7, protocol::UDP, 53), PORT_RULE);
        assert_eq!(
            rule_for(&v4(protocol::UDP, &[], &udp()), &tables),
            Ok(PORT_RULE)
        );
        assert_eq!(
            rule_for(&v4(protocol::TCP, &[], &tcp()), &tables),
            Ok(TCP_RULE)
        );
    }

    #[test]
    fn a_port_table_is_not_asked_about_protocols_without_ports() {
        let mut tables = Tables::covering(Destination {
            table: 7,
            ..COVERED
        });
        for number in 0..=255 {
            tables.ports.insert((7, number, 0), PORT_RULE);
        }
        assert_eq!(
            rule_for(&v4(protocol::ICMP, &[], &icmp(8, 7)), &tables),
            Ok(ICMP_RULE)
        );
        assert_eq!(rule_for(&v4(47, &[], &[]), &tables), Ok(OTHER_RULE));
    }

    #[test]
    fn a_destination_without_a_port_table_is_left_to_its_protocols() {
        let mut tables = Tables::covering(COVERED);
        tables
            .ports
            .insert((NO_TABLE, protocol::UDP, 53), PORT_RULE);
        tables
            .ports
            .insert((ANY_TABLE, protocol::UDP, 53), PORT_RULE);
        assert_eq!(
            rule_for(&v4(protocol::UDP, &[], &udp()), &tables),
            Ok(UDP_RULE)
        );
    }

    #[test]
    fn rules_for_any_destination_hold_where_no_other_does() {
        let mut tables = Tables::default();
        tables
            .ports
            .insert((ANY_TABLE, protocol::UDP, 53), PORT_RULE);
        assert_eq!(
            rule_for(&v6(&[], protocol::UDP, &udp()), &tables),
            Ok(PORT_RULE)
        );
        assert_eq!(
            rule_for(&v6(&[], protocol::TCP, &tcp()), &tables),
            Err(Reason::NoRule)
        );
    }

    #[test]
    fn a_packet_passes_where_its_protocol_has_no_rule() {
        let tables = Tables::covering(Destination {
            tcp: NO_RULE,
            ..COVERED
        });
        assert_eq!(
            rule_for(&v4(protocol::TCP, &[], &tcp()), &tables),
            Err(Reason::NoRule)
        );
    }

    #[test]
    fn a_rule_for_an_ipv4_address_takes_no_ipv6_packet_to_its_mapped_form() {
        let mut packet = v6(&[], protocol::UDP, &udp());
        packet[24..40].copy_from_slice(&SERVER_V4.to_ipv6_mapped().octets());
        assert_eq!(
            rule_for(&packet, &Tables::covering(COVERED)),
            Err(Reason::NoRule)
        );
    }

    #[test]
    fn fragments_and_broken_packets_pass_whatever_the_rules() {
        let tables = Tables::covering(COVERED);
        let fragment = v6(&[(protocol::FRAGMENT, 8)], protocol::UDP, &udp());
        assert_eq!(rule_for(&fragment, &tables), Err(Reason::Fragment));
        let short = &v4(protocol::UDP, &[], &udp())[..21];
        assert_eq!(rule_for(short, &tables), Err(Reason::Malformed));
        assert_eq!(rule_for(&[0; 40], &tables), Err(Reason::NotIp));
    }

    #[test]
    fn reasons_stand_in_the_order_of_their_numbers_and_have_names_of_their_own() {
        for (number, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
        }
        let names: HashSet<_> = Reason::ALL.into_iter().map(Reason::name).collect();
        assert_eq!(names.len(), Reason::ALL.len());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic_and_pass_when_there_are_no_rules(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            offset in prop_oneof![Just(0_usize), Just(14)],
        ) {
            prop_assert!(classify(bytes.as_slice(), offset, &Tables::default()).is_err());
        }

        #[test]
        fn damaged_packets_are_taken_only_if_they_are_for_a_covered_destination(
            damage in prop::collection::vec((0..48_usize, any::<u8>()), 0..4),
            v6_wanted: bool,
        ) {
            let mut packet = if v6_wanted {
                v6(&[], protocol::UDP, &udp())
            } else {
                v4(protocol::UDP, &[], &udp())
            };
            for (at, octet) in damage {
                if let Some(damaged) = packet.get_mut(at) {
                    *damaged = octet;
                }
            }
            match classify(packet.as_slice(), 0, &Tables::covering(COVERED)) {
                Ok(Match { headers, .. }) => {
                    prop_assert!([server_v4(), server_v6()].contains(&headers.destination));
                }
                Err(reason) => prop_assert_ne!(reason, Reason::Intercepted),
            }
        }
    }

    #[derive(Default)]
    struct Tables {
        destinations: HashMap<Address, Destination>,
        ports: HashMap<(u32, u8, u16), u32>,
    }

    impl Tables {
        /// Tables with `destination` for both of the server's addresses.
        fn covering(destination: Destination) -> Self {
            Self {
                destinations: [server_v4(), server_v6()]
                    .map(|address| (address, destination))
                    .into(),
                ports: HashMap::new(),
            }
        }
    }

    impl Rules for Tables {
        fn destination(&self, address: &Address) -> Destination {
            let entry = self.destinations.get(address).copied();
            entry.unwrap_or(Destination::UNCOVERED)
        }

        fn port(&self, table: u32, protocol: u8, port: u16) -> Option<u32> {
            self.ports.get(&(table, protocol, port)).copied()
        }
    }

    fn rule_for(packet: &[u8], tables: &Tables) -> Result<u32, Reason> {
        classify(packet, 0, tables).map(|found| found.rule)
    }
}
