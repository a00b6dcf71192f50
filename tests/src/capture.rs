//! Captures: what crossed an interface, by tcpdump and a reader for its files.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::namespace::Namespace;
use crate::process::Process;
use crate::scratch::Scratch;
use crate::wait::until;

/// A capture that runs until it is dropped.
#[derive(Debug)]
pub struct Capture {
    _process: Process,
    file: PathBuf,
    _scratch: Scratch,
}

/// One captured packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number; for IPv6 that of the first next-header field.
    pub protocol: u8,
    /// Source and destination port, for UDP and TCP.
    pub ports: Option<(u16, u16)>,
    /// Length on the wire in octets, link layer included.
    pub length: u32,
}

impl Capture {
    /// Starts to capture on `interface`; what is sent from here on is seen.
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self> {
        let scratch = Scratch::new()?;
        let file = scratch.path("capture.pcap");
        let mut command = namespace.command("tcpdump");
        command
            .args(["--immediate-mode", "-U", "-n", "-s", "256", "-B", "16384"])
            .args(["-Z", "root", "-i", interface, "-w"])
            .arg(&file);
        let mut process = Process::spawn("tcpdump", command)?;
        process.wait_for_line("listening on")?;
        Ok(Self {
            _process: process,
            file,
            _scratch: scratch,
        })
    }

    /// The IP packets captured so far.
    pub fn packets(&self) -> Result<Vec<Packet>> {
        let bytes = fs::read(&self.file).context("cannot read the capture")?;
        parse(&bytes)
    }

    /// Those captured so far for which `matches` holds.
    pub fn matching(&self, matches: impl Fn(&Packet) -> bool) -> Result<Vec<Packet>> {
        let mut packets = self.packets()?;
        packets.retain(matches);
        Ok(packets)
    }

    /// Whether `octets` stand in what was captured so far: of each packet, in its first 256 octets.
    pub fn holds(&self, octets: &[u8]) -> Result<bool> {
        let bytes = fs::read(&self.file).context("cannot read the capture")?;
        Ok(bytes.windows(octets.len()).any(|window| window == octets))
    }

    /// Waits until a packet for which `matches` holds was captured; what was sent before it has been seen, too.
    pub fn wait_for(&self, what: &str, matches: impl Fn(&Packet) -> bool) -> Result<()> {
        until(&format!("a capture of {what}"), || {
            self.packets()
                .map(|packets| packets.iter().any(&matches).then_some(()))
                .transpose()
        })?
    }
}

impl Packet {
    /// Whether it comes from or goes to `address`.
    pub fn involves(&self, address: IpAddr) -> bool {
        self.source == address || self.destination == address
    }

    /// Whether it comes from or goes to UDP or TCP `port`.
    pub fn involves_port(&self, port: u16) -> bool {
        self.ports
            .is_some_and(|(source, destination)| source == port || destination == port)
    }

    fn parse(ip: &[u8], length: u32) -> Option<Self> {
        let (source, destination, protocol, payload): (IpAddr, IpAddr, u8, &[u8]) =
            match ip.first()? >> 4 {
                4 => (
                    Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(12..16)?).ok()?).into(),
                    Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(16..20)?).ok()?).into(),
                    *ip.get(9)?,
                    ip.get(usize::from(ip[0] & 0x0f) * 4..)?,
                ),
                6 => (
                    Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(8..24)?).ok()?).into(),
                    Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(24..40)?).ok()?).into(),
                    *ip.get(6)?,
                    ip.get(40..)?,
                ),
                _ => return None,
            };
        let ports = match (protocol, payload) {
            (TCP | UDP, [a, b, c, d, ..]) => {
                Some((u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])))
            }
            _ => None,
        };
        Some(Self {
            source,
            destination,
            protocol,
            ports,
            length,
        })
    }
}

/// Reads a pcap file as this machine's tcpdump writes it; a record that is not complete yet ends it.
fn parse(bytes: &[u8]) -> Result<Vec<Packet>> {
    let Some(header) = bytes.get(..24) else {
        return Ok(Vec::new());
    };
    if word(header, 0) != Some(0xa1b2_c3d4) {
        bail!("not a capture in this machine's byte order");
    }
    let link_layer = match word(header, 20) {
        Some(LINKTYPE_RAW) => 0,
        Some(LINKTYPE_ETHERNET) => 14,
        other => bail!("a capture of unknown link type {other:?}"),
    };
    let mut packets = Vec::new();
    let mut rest = &bytes[24..];
    while let (Some(captured), Some(length)) = (word(rest, 8), word(rest, 12)) {
        let end = 16 + captured as usize;
        let Some(record) = rest.get(16..end) else {
            break;
        };
        packets.extend(
            record
                .get(link_layer..)
                .and_then(|ip| Packet::parse(ip, length)),
        );
        rest = &rest[end..];
    }
    Ok(packets)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

const LINKTYPE_ETHERNET: u32 = 1;
const LINKTYPE_RAW: u32 = 101;
const TCP: u8 = 6;
const UDP: u8 = 17;
