//! The netstack on a real TUN device against the kernel's own TCP, UDP and ping, in a network namespace per test.

use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::lab::{self, Ports};
use crate::config::TcpConfig;
use crate::net::testing::{add_address, run};
use crate::netstack::{Handle, spawn};
use crate::reader::NameError;
use crate::reader::tun::{TunError, TunReader};
use crate::service::{BoxStream, Flow, Responder, Service};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn the_kernels_udp_gets_answers_and_refusals() {
    in_namespace(async || {
        let _handle = start();
        for (local, server) in [
            ("10.9.9.1:0", "10.30.30.30"),
            ("[fd09::1]:0", "fd30:30:30::30"),
        ] {
            let socket = UdpSocket::bind(local).await.unwrap();
            socket.connect(at(server, 53)).await.unwrap();
            socket.send(b"question").await.unwrap();
            let mut buffer = [0; 100];
            let length = patiently(socket.recv(&mut buffer)).await.unwrap();
            assert_eq!(&buffer[..length], b"question");

            socket.connect(at(server, 54)).await.unwrap();
            socket.send(b"question").await.unwrap();
            let error = patiently(socket.recv(&mut buffer)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
    });
}

#[test]
fn the_kernels_tcp_exchanges_a_megabyte_both_ways() {
    in_namespace(async || {
        let handle = start();
        for server in ["10.30.30.30", "fd30:30:30::30"] {
            let stream = patiently(TcpStream::connect(at(server, 53))).await.unwrap();
            let (mut reader, mut writer) = stream.into_split();
            let data: Vec<u8> = (0..1_000_000_u32).map(|n| (n / 3) as u8).collect();
            let sent = data.clone();
            tokio::spawn(async move {
                writer.write_all(&sent).await.unwrap();
                writer.shutdown().await.unwrap();
            });
            let mut received = Vec::new();
            patiently(reader.read_to_end(&mut received)).await.unwrap();
            assert!(received == data);

            let error = patiently(TcpStream::connect(at(server, 54)))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
        assert_eq!(handle.counters().malformed, 0);
    });
}

#[test]
fn the_kernels_ping_is_answered_at_any_size() {
    in_namespace(async || {
        let _handle = start();
        for server in ["10.30.30.30", "fd30:30:30::30"] {
            for size in ["0", "56", "1300"] {
                run(&format!("ping -c 1 -W 10 -s {size} {server}"));
            }
        }
    });
}

#[test]
fn a_thousand_connections_are_served_at_once() {
    in_namespace(async || {
        let handle = start();
        let clients: Vec<_> = (0..1000)
            .map(|_| tokio::spawn(TcpStream::connect(at("10.30.30.30", 53))))
            .collect();
        let mut streams = Vec::new();
        for client in clients {
            streams.push(patiently(client).await.unwrap().unwrap());
        }
        for (n, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&(n as u32).to_be_bytes()).await.unwrap();
        }
        for (n, stream) in streams.iter_mut().enumerate() {
            assert_eq!(patiently(stream.read_u32()).await.unwrap(), n as u32);
        }
        assert_eq!(handle.counters().connections_open, 1000);
        drop(streams);
        patiently(async {
            while handle.counters().connections_open > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        assert_eq!(handle.counters().connections_accepted, 1000);
    });
}

#[test]
fn a_shutdown_closes_connections_and_removes_the_device() {
    in_namespace(async || {
        let handle = start();
        let mut stream = patiently(TcpStream::connect(at("10.30.30.30", 53)))
            .await
            .unwrap();
        stream.write_all(b"ping").await.unwrap();
        let mut buffer = [0; 4];
        patiently(stream.read_exact(&mut buffer)).await.unwrap();

        handle.shutdown().await;

        assert_eq!(patiently(stream.read(&mut buffer)).await.unwrap(), 0);
        // A program that another test starts has a copy of the device until it runs.
        patiently(async {
            while nix::net::if_::if_nametoindex("icept0").is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        handle.ended().await.unwrap();
    });
}

#[test]
fn a_deleted_device_ends_the_netstack_with_an_error() {
    in_namespace(async || {
        let handle = start();

        run("ip link del icept0");

        patiently(handle.ended()).await.unwrap_err();
    });
}

#[test]
fn a_device_that_was_down_for_a_while_serves_again() {
    in_namespace(async || {
        let _handle = start();
        run("ip link set icept0 down");
        tokio::time::sleep(Duration::from_millis(100)).await;
        run("ip link set icept0 up");
        run("ip route add 10.30.30.30/32 dev icept0 src 10.9.9.1");

        let mut stream = patiently(TcpStream::connect(at("10.30.30.30", 53)))
            .await
            .unwrap();
        stream.write_all(b"ping").await.unwrap();
        let mut buffer = [0; 4];
        patiently(stream.read_exact(&mut buffer)).await.unwrap();
    });
}

#[test]
fn devices_are_numbered_and_a_taken_name_is_refused() {
    in_namespace(async || {
        let first = TunReader::create(None, 1420).unwrap();
        let second = TunReader::create(None, 1420).unwrap();
        assert_eq!((first.name(), second.name()), ("icept0", "icept1"));
        assert_ne!(first.index(), second.index());

        let taken = TunReader::create(Some("icept0"), 1420).err().unwrap();
        assert!(matches!(taken, TunError::Name(NameError::Taken(_))));
        assert_eq!(
            taken.to_string(),
            "icept0: an interface of that name exists; choose another with --device"
        );
        let long = TunReader::create(Some("a-name-of-16-byt"), 1420)
            .err()
            .unwrap();
        assert!(matches!(long, TunError::Name(NameError::Unsound(_))));
    });
}

#[test]
fn the_kernel_says_nothing_of_its_own_on_the_device() {
    in_namespace(async || {
        let handle = start();

        tokio::time::sleep(Duration::from_secs(3)).await;

        assert_eq!(handle.counters().packets_in, 0);
    });
}

/// Sends everything back.
struct Echo;

impl Service for Echo {
    fn datagram(&self, _flow: Flow, payload: &[u8], responder: Responder) {
        responder.send(payload);
    }

    fn stream(&self, _flow: Flow, stream: BoxStream) {
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut reader, &mut writer).await;
        });
    }
}

/// A netstack on icept0, with the virtual addresses routed to it and addresses for clients on `lo`.
fn start() -> Handle {
    let reader = TunReader::create(None, 1420).unwrap();
    assert_eq!(reader.name(), "icept0");
    add_address("10.9.9.1/32", "lo");
    add_address("fd09::1/128", "lo");
    run("ip route add 10.30.30.30/32 dev icept0 src 10.9.9.1");
    run("ip route add fd30:30:30::30/128 dev icept0 src fd09::1");
    spawn(
        reader,
        Arc::new(Ports(Arc::new(Echo))),
        &TcpConfig {
            max_connections: 2000,
            idle_timeout: Duration::from_secs(30),
        },
        1420,
    )
}

/// Runs `test` on a thread in a network namespace of its own, which goes with the thread.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let outcome = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)
            .expect("this test makes a network namespace and needs CAP_SYS_ADMIN: run it as root");
        run("ip link set lo up");
        // The workers inherit the namespace from this thread.
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
            .block_on(test());
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

async fn patiently<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("took too long")
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(lab::address(address), port)
}
