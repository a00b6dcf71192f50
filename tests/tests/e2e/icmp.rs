//! A virtual address behaves like a host: it can be pinged, and closed ports say so.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};

use anyhow::Result;
use lab::{Capture, Lab, VIRTUAL_V4, VIRTUAL_V6, patience};

#[test]
fn a_virtual_address_can_be_pinged() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;
    let capture = Capture::start(&lab.peer, lab.tunnel.peer_interface())?;

    for address in [VIRTUAL_V4, VIRTUAL_V6] {
        for size in [0, 56, 1300] {
            let pinged = lab
                .client
                .run(&format!("ping -n -c 2 -i 0.2 -W 15 -s {size} {address}"))?;
            assert!(pinged.contains(" 0% packet loss"), "{pinged}");
        }
    }

    lab.wait_for_tunnel()?;
    capture.wait_for("the peer's ping", |packet| packet.protocol == 58)?;
    for address in [VIRTUAL_V4, VIRTUAL_V6] {
        assert_eq!(
            capture.matching(|packet| packet.involves(address))?,
            Vec::new()
        );
    }
    Ok(())
}

#[test]
fn a_rule_for_the_echo_service_answers_pings_of_a_whole_prefix() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&[])?;

    daemon.rule_add(&["10.30.30.64/26", "--protocol", "icmp", "--service", "echo"])?;

    for last in [64, 100, 127] {
        lab.ping(IpAddr::from([10, 30, 30, last]))?;
    }
    Ok(())
}

#[test]
fn a_closed_tcp_port_of_a_virtual_address_refuses() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;

    for address in [VIRTUAL_V4, VIRTUAL_V6] {
        let error = lab
            .client
            .enter(|| TcpStream::connect(SocketAddr::new(address, 80)))?
            .expect_err("a closed port accepted");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    Ok(())
}

#[test]
fn a_closed_udp_port_of_a_virtual_address_is_unreachable() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&[])?;

    for address in [VIRTUAL_V4, VIRTUAL_V6] {
        let socket = lab.client.udp_to(SocketAddr::new(address, 5353))?;
        socket.set_read_timeout(Some(patience()))?;
        socket.send(b"is anybody there?")?;
        let error = lab::receive(&socket, &mut [0; 100]).expect_err("a closed port replied");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    Ok(())
}
