//! WireGuard: whether an interface is one, and the mark on its own packets, from the kernel or from a userspace daemon.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_core::Parseable;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_packet_wireguard::{WireguardAttribute, WireguardCmd, WireguardMessage};
use rtnetlink::sys::protocols::NETLINK_GENERIC;
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::links;
use super::socket::{NetlinkSocket, attributes};

/// Where userspace implementations listen, `<interface>.sock` each; shared by all network namespaces.
const UAPI_DIRECTORY: &str = "/var/run/wireguard";

/// How long an implementation may take to tell of itself.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a userspace implementation may say before its peers, in bytes; it needs about 150.
const UAPI_LIMIT: u64 = 64 * 1024;

/// A WireGuard interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireGuard {
    /// Who implements it.
    pub implementation: Implementation,
    /// The mark that its encrypted packets carry, by which policy routing leads them around the tunnel.
    pub fwmark: Option<u32>,
    /// The UDP port it listens on.
    pub listen_port: Option<u16>,
}

/// Who implements a WireGuard interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// The kernel's own module.
    Kernel,
    /// A daemon with the cross-platform interface: wireguard-go, boringtun, gotatun.
    Userspace,
}

/// Why an interface that may well be WireGuard could not be asked.
#[derive(Debug, Error)]
#[error("cannot ask {interface} for its WireGuard settings ({way})")]
pub struct WireGuardError {
    /// The interface.
    pub interface: String,
    /// How it was asked.
    pub way: String,
    /// What went wrong; `TimedOut` where no answer came within a second.
    pub source: io::Error,
}

/// The fwmark of `interface`: `None` where it has none, is no WireGuard interface or does not exist.
pub async fn fwmark(interface: &str) -> Result<Option<u32>, WireGuardError> {
    Ok(inspect(interface).await?.and_then(|it| it.fwmark))
}

/// The WireGuard side of `interface`: `None` where it is no WireGuard interface or does not exist.
///
/// Answers within about a second. A socket that a dead userspace daemon left behind counts as none.
pub async fn inspect(interface: &str) -> Result<Option<WireGuard>, WireGuardError> {
    let failed = |way: String| {
        move |source| WireGuardError {
            interface: interface.to_owned(),
            way,
            source,
        }
    };
    let link = patiently(links::find(interface))
        .await
        .map_err(failed("by netlink".to_owned()))?;
    let Some(link) = link else {
        return Ok(None);
    };
    // Asking for the family of an interface of another kind would make the kernel load its WireGuard module.
    if link.kind.as_deref() == Some(WireguardMessage::family_name()) {
        return patiently(ask_kernel(interface))
            .await
            .map(Some)
            .map_err(failed("by generic netlink".to_owned()));
    }
    let path = uapi_socket(interface);
    patiently(ask_userspace(&path))
        .await
        .map_err(failed(format!("at {}", path.display())))
}

async fn patiently<T>(asking: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(PATIENCE, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "no answer within a second",
        )),
    }
}

async fn ask_kernel(interface: &str) -> io::Result<WireGuard> {
    let mut socket = NetlinkSocket::open(NETLINK_GENERIC, &[])?;
    let replies = socket.request(family_request(), 0).await?;
    let Some(family) = replies.iter().find_map(|reply| parse_family(reply)) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel did not name its WireGuard family",
        ));
    };
    let replies = socket
        .request(device_request(interface, family), NLM_F_DUMP)
        .await?;
    // A device with many peers takes several messages, of which only the first has what is wanted here.
    let Some(device) = replies.first() else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel's answer is empty",
        ));
    };
    Ok(parse_device(device))
}

fn family_request() -> GenlMessage<GenlCtrl> {
    GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(
            WireguardMessage::family_name().to_owned(),
        )],
    })
}

fn parse_family(payload: &[u8]) -> Option<u16> {
    let header = GenlHeader::parse(payload).ok()?;
    attributes(payload, &header)
        .filter_map(|attribute| GenlCtrlAttrs::parse(&attribute).ok())
        .find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(family) => Some(family),
            _ => None,
        })
}

fn device_request(interface: &str, family: u16) -> GenlMessage<WireguardMessage> {
    let mut request = GenlMessage::from_payload(WireguardMessage {
        cmd: WireguardCmd::GetDevice,
        attributes: vec![WireguardAttribute::IfName(interface.to_owned())],
    });
    request.set_resolved_family_id(family);
    request
}

fn parse_device(payload: &[u8]) -> WireGuard {
    let mut device = WireGuard {
        implementation: Implementation::Kernel,
        fwmark: None,
        listen_port: None,
    };
    let Ok(header) = GenlHeader::parse(payload) else {
        return device;
    };
    for attribute in attributes(payload, &header) {
        match WireguardAttribute::parse(&attribute) {
            Ok(WireguardAttribute::Fwmark(mark)) => device.fwmark = nonzero(mark),
            Ok(WireguardAttribute::ListenPort(port)) => device.listen_port = nonzero(port),
            _ => {}
        }
    }
    device
}

fn uapi_socket(interface: &str) -> PathBuf {
    Path::new(UAPI_DIRECTORY).join(format!("{interface}.sock"))
}

/// Asks the implementation behind `path`; `None` where nobody listens there.
async fn ask_userspace(path: &Path) -> io::Result<Option<WireGuard>> {
    let mut stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        Err(error) if is_nobody(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    stream.write_all(b"get=1\n\n").await?;
    let mut lines = BufReader::new(stream.take(UAPI_LIMIT)).lines();
    let mut answer = UapiAnswer::default();
    while let Some(line) = lines.next_line().await? {
        if answer.take(&line)? {
            return Ok(Some(answer.device()));
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// The device's part of the answer to `get=1` (the cross-platform userspace interface): its own settings come before
/// the first peer's.
#[derive(Debug, Default)]
struct UapiAnswer {
    fwmark: Option<u32>,
    listen_port: Option<u16>,
}

impl UapiAnswer {
    /// Takes one line; whether all of the device's settings have been told.
    fn take(&mut self, line: &str) -> io::Result<bool> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a malformed answer");
        let (key, value) = line.split_once('=').ok_or_else(malformed)?;
        match key {
            "fwmark" => self.fwmark = nonzero(value.parse().map_err(|_| malformed())?),
            "listen_port" => self.listen_port = nonzero(value.parse().map_err(|_| malformed())?),
            "public_key" => return Ok(true),
            "errno" => {
                let errno: i32 = value.parse().map_err(|_| malformed())?;
                if errno != 0 {
                    return Err(io::Error::from_raw_os_error(errno.saturating_abs()));
                }
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }

    fn device(self) -> WireGuard {
        WireGuard {
            implementation: Implementation::Userspace,
            fwmark: self.fwmark,
            listen_port: self.listen_port,
        }
    }
}

fn nonzero<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use netlink_packet_core::{Emitable, NetlinkSerializable};
    use netlink_packet_wireguard::{WireguardPeer, WireguardPeerAttribute};
    use tokio::net::UnixListener;

    use super::*;
    use crate::net::testing::{self, NoProgramStarts, in_namespace, run};

    #[test]
    fn the_family_is_asked_for_by_name() {
        let request = family_request();
        let mut bytes = vec![0; Emitable::buffer_len(&request)];
        request.emit(&mut bytes);

        assert_eq!(bytes, b"\x03\x02\0\0\x0e\0\x02\0wireguard\0\0\0");
        assert_eq!(request.message_type(), 16, "GENL_ID_CTRL");
    }

    #[test]
    fn the_familys_number_is_read_from_the_reply() {
        let reply = b"\x01\x02\0\0\x0e\0\x02\0wireguard\0\0\0\x06\0\x01\0\x2a\0\0\0";

        assert_eq!(parse_family(reply), Some(42));
        assert_eq!(parse_family(&reply[..20]), None);
        assert_eq!(parse_family(b""), None);
    }

    #[test]
    fn the_device_is_asked_for_as_wg_does() {
        let request = device_request("cn", 42);
        let mut bytes = vec![0; Emitable::buffer_len(&request)];
        request.emit(&mut bytes);

        assert_eq!(bytes, b"\x00\x01\0\0\x07\0\x02\0cn\0\0");
        assert_eq!(request.message_type(), 42);
    }

    #[test]
    fn the_kernels_answer_gives_mark_and_port() {
        let with_mark = device_reply(51820);
        let without_mark = device_reply(0);

        assert_eq!(
            parse_device(&with_mark),
            WireGuard {
                implementation: Implementation::Kernel,
                fwmark: Some(51820),
                listen_port: Some(11308),
            }
        );
        assert_eq!(parse_device(&without_mark).fwmark, None);
        for length in 0..with_mark.len() {
            parse_device(&with_mark[..length]);
        }
    }

    #[test]
    fn a_userspace_answer_is_read_up_to_the_first_peer() {
        let mut answer = UapiAnswer::default();

        for (line, complete) in [
            ("private_key=00", false),
            ("listen_port=51821", false),
            ("fwmark=51820", false),
            ("public_key=00", true),
        ] {
            assert_eq!(answer.take(line).expect(line), complete, "{line}");
        }
        assert_eq!(
            answer.device(),
            WireGuard {
                implementation: Implementation::Userspace,
                fwmark: Some(51820),
                listen_port: Some(51821),
            }
        );
    }

    #[test]
    fn a_userspace_answer_without_peers_ends_with_errno() {
        assert!(UapiAnswer::default().take("errno=0").expect("the end"));
        let refused = UapiAnswer::default()
            .take("errno=-13")
            .expect_err("refused");
        assert_eq!(refused.raw_os_error(), Some(13));
        for malformed in ["", "fwmark", "fwmark=0x10", "errno=?", "listen_port=70000"] {
            assert!(
                UapiAnswer::default().take(malformed).is_err(),
                "{malformed}"
            );
        }
    }

    #[tokio::test]
    async fn nobody_at_the_socket_is_no_wireguard() {
        let _closing_frees = NoProgramStarts::wait();
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("wg0.sock");
        assert_eq!(ask_userspace(&path).await.expect("asking"), None);

        drop(UnixListener::bind(&path).expect("a socket"));
        assert!(path.exists(), "the stale socket is there");
        assert_eq!(ask_userspace(&path).await.expect("asking"), None);
    }

    #[tokio::test]
    async fn an_endless_or_unfinished_answer_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, answer, times) in [("endless", "private_key=0\n", 10_000), ("none", "", 1)] {
            let path = directory.path().join(name);
            let listener = UnixListener::bind(&path).expect("a socket");
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut question = [0; 7];
                stream.read_exact(&mut question).await.expect("a question");
                assert_eq!(&question, b"get=1\n\n");
                for _ in 0..times {
                    // The client hangs up at its limit.
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });

            assert!(ask_userspace(&path).await.is_err(), "{name}");
            server.await.expect("the server");
        }
    }

    #[tokio::test]
    async fn a_daemon_that_hangs_is_given_up() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("wg0.sock");
        let _listener = UnixListener::bind(&path).expect("a socket");

        let error = patiently(ask_userspace(&path))
            .await
            .expect_err("no answer");

        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn an_interface_that_is_not_wireguard_or_does_not_exist_has_no_mark() {
        in_namespace(async || {
            for name in ["lo", "wg-absent", "", "../../../etc/passwd"] {
                assert_eq!(inspect(name).await.expect("asking"), None, "{name}");
                assert_eq!(fwmark(name).await.expect("asking"), None, "{name}");
            }
        });
    }

    #[test]
    fn wireguard_go_tells_its_mark() {
        in_namespace(async || {
            let name = format!("nt{}", std::process::id());
            let _daemon = WireGuardGo::start(&name).await;

            let fresh = inspect(&name).await.expect("asking").expect("WireGuard");
            assert_eq!(fresh.implementation, Implementation::Userspace);
            assert_eq!(fresh.fwmark, None);

            run(&format!("wg set {name} fwmark 51820 listen-port 51821"));
            let marked = inspect(&name).await.expect("asking").expect("WireGuard");
            assert_eq!(marked.fwmark, Some(51820));
            assert_eq!(marked.listen_port, Some(51821));
            assert_eq!(fwmark(&name).await.expect("asking"), Some(51820));
        });
    }

    /// The kernel's answer for a device with a peer, as `wg` gets it.
    fn device_reply(mark: u32) -> Vec<u8> {
        let reply = GenlMessage::from_payload(WireguardMessage {
            cmd: WireguardCmd::GetDevice,
            attributes: vec![
                WireguardAttribute::ListenPort(11308),
                WireguardAttribute::Fwmark(mark),
                WireguardAttribute::IfIndex(3),
                WireguardAttribute::IfName("cn".to_owned()),
                WireguardAttribute::PrivateKey([1; 32]),
                WireguardAttribute::PublicKey([2; 32]),
                WireguardAttribute::Peers(vec![WireguardPeer(vec![
                    WireguardPeerAttribute::PublicKey([3; 32]),
                ])]),
            ],
        });
        let mut bytes = vec![0; Emitable::buffer_len(&reply)];
        reply.emit(&mut bytes);
        bytes
    }

    /// A wireguard-go of the calling thread's namespace, gone when dropped.
    struct WireGuardGo {
        process: Child,
        socket: PathBuf,
    }

    impl WireGuardGo {
        async fn start(name: &str) -> Self {
            let mut process = Command::new("wireguard-go");
            process
                .args(["--foreground", name])
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let process = testing::spawn(&mut process)
                .expect("this test needs wireguard-go (package wireguard-go)");
            let daemon = Self {
                process,
                socket: uapi_socket(name),
            };
            while UnixStream::connect(&daemon.socket).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            daemon
        }
    }

    impl Drop for WireGuardGo {
        fn drop(&mut self) {
            // A failed kill leaves nothing to be done about it.
            let _ = self.process.kill();
            let _ = self.process.wait();
            let _ = std::fs::remove_file(&self.socket);
        }
    }
}
