//! Who has a port already, for the person who wants to listen there.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process;

use crate::rules::Transport;

/// State of a listening TCP socket and of an unconnected UDP socket in `/proc/net` (the kernel's tcp_states.h).
const LISTENING: &str = "0A";
const UNCONNECTED: &str = "07";

/// The other program that has `address`'s port, as `systemd-resolved (pid 512)`; none where it cannot be told, as it cannot for
/// other users' programs without privileges.
pub(super) fn of(address: SocketAddr, transport: Transport) -> Option<String> {
    // What we have at another address is in nobody's way.
    holder(address, transport, |pid| pid != process::id())
}

/// Whether the process `pid` has `address`'s port.
pub(super) fn has(pid: u32, address: SocketAddr, transport: Transport) -> bool {
    holder(address, transport, |other| other == pid).is_some()
}

fn holder(
    address: SocketAddr,
    transport: Transport,
    may_be: impl Fn(u32) -> bool,
) -> Option<String> {
    let (tables, state) = match transport {
        Transport::Tcp => (["tcp", "tcp6"], LISTENING),
        Transport::Udp => (["udp", "udp6"], UNCONNECTED),
    };
    let inodes: Vec<String> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(format!("/proc/net/{table}")).ok())
        .flat_map(|table| inodes_at(&table, address.port(), state))
        .collect();
    let links: Vec<String> = inodes
        .iter()
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if links.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let holder = processes
        .filter(|process| {
            let pid = process.file_name().to_string_lossy().parse();
            pid.is_ok_and(&may_be)
        })
        .map(|process| process.path())
        .find(|process| holds(process, &links))?;
    let name = fs::read_to_string(holder.join("comm")).ok()?;
    let pid = holder.file_name()?.to_string_lossy();
    Some(format!("{} (pid {pid})", name.trim()))
}

/// The sockets at `port` in a table of `/proc/net`.
fn inodes_at(table: &str, port: u16, state: &str) -> Vec<String> {
    let suffix = format!(":{port:04X}");
    let rows = table.lines().skip(1).filter_map(|row| {
        let fields: Vec<&str> = row.split_whitespace().collect();
        let is_wanted = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == state;
        is_wanted.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
    });
    rows.collect()
}

fn holds(process: &Path, links: &[String]) -> bool {
    let Ok(files) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok())
        .any(|target| links.iter().any(|link| target.as_os_str() == link.as_str()))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;
    use crate::net::testing::NoProgramStarts;

    #[test]
    fn the_program_at_a_port_is_named() {
        let _one_owner = NoProgramStarts::wait();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let me = format!("(pid {})", process::id());
        for (address, transport) in [
            (udp.local_addr().unwrap(), Transport::Udp),
            (tcp.local_addr().unwrap(), Transport::Tcp),
        ] {
            let owner = holder(address, transport, |_| true).unwrap();
            assert!(owner.ends_with(&me), "{owner}");
            assert_eq!(of(address, transport), None);
        }
    }

    #[test]
    fn a_free_port_has_no_owner() {
        let _closing_frees = NoProgramStarts::wait();
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        drop(taken);
        assert_eq!(of(address, Transport::Udp), None);
    }

    #[test]
    fn sockets_are_found_by_port_and_state() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     0: 0100007F:0035 00000000:0000 0A 0:0 00:0 0 0 0 4711 1\n\
                     1: 0100007F:0035 0100007F:A000 01 0:0 00:0 0 0 0 4712 1\n\
                     2: 0100007F:1035 00000000:0000 0A 0:0 00:0 0 0 0 4713 1\n\
                     3: short\n";
        assert_eq!(inodes_at(table, 53, LISTENING), ["4711"]);
    }
}
