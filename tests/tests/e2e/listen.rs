//! Listeners: plain and encrypted sockets, who is answered at them, and a daemon that has nothing else.

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{
    Authority, Daemon, Deed, EncryptedServer, Exit, Identity, Load, Namespace, Process,
    RESOLVER_V4, Responder, Scratch, TlsResponder, Unbound, VethEnd, binary, dns, finish,
    interceptor, unprivileged, until, veth,
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

const NAME: &str = "dns.lab.test";
const NOBODY: u32 = 65534;

#[test]
fn a_listener_answers_over_udp_and_tcp_and_intercepts_nothing() -> Result<()> {
    let stage = Stage::new()?;
    let mut daemon = stage.daemon(&["--listen", "10.1.0.1"])?;

    for transport in ["+notcp", "+tcp"] {
        assert_eq!(
            stage.address(&format!("{transport} @10.1.0.1"))?,
            "192.0.2.80"
        );
    }
    let big = stage.dig("+short +tcp @10.1.0.1 TXT big60k.example.test")?;
    assert_eq!(big.lines().count(), 226);

    let status = daemon.status()?;
    assert_eq!(status["reader"], serde_json::Value::Null);
    assert_eq!(status["listeners"][0]["url"], "udp://10.1.0.1:53");
    assert_eq!(status["listeners"][0]["received"], 1);
    assert_eq!(status["listeners"][1]["received"], 2);
    let links = stage.host.run("ip -brief link")?;
    assert!(!links.contains("icept"), "{links}");
    let exit = daemon.try_ask(&["rule", "add", "10.9.9.9"])?;
    assert_eq!(exit.code, Some(1), "{exit:?}");
    assert!(exit.stderr.contains("intercepts nothing"), "{exit:?}");
    assert_eq!(daemon.stop()?, 0);
    Ok(())
}

#[test]
fn a_long_answer_over_udp_is_truncated_before_it_would_be_fragmented() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.daemon(&["--listen", "10.1.0.1"])?;

    let reply = stage.dig("+ignore +bufsize=4096 @10.1.0.1 TXT big4k.example.test")?;

    assert!(reply.contains(" tc "), "{reply}");
    Ok(())
}

#[test]
fn all_addresses_answer_each_from_its_own() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.daemon(&["--listen", "0.0.0.0", "--listen", "[::]"])?;

    // dig takes no reply that comes from another address than it has asked.
    for server in ["10.1.0.1", "10.1.0.2", "fd01::1", "fd01::2"] {
        for transport in ["+notcp", "+tcp"] {
            let answer = stage.address(&format!("{transport} @{server}"))?;
            assert_eq!(answer, "192.0.2.80", "{server} {transport}");
        }
    }
    Ok(())
}

#[test]
fn a_listener_beside_a_tunnel_leaves_the_virtual_addresses_alone() -> Result<()> {
    let lab = lab::Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&["--listen", "192.0.2.2:5353"])?;

    for server in ["@10.30.30.30", "-p 5353 @192.0.2.2"] {
        let answer = lab.dig(&format!("+short {server} www.example.test"))?;
        assert_eq!(answer.trim(), "192.0.2.80", "{server}");
    }
    Ok(())
}

#[test]
fn at_a_public_address_strangers_are_refused_in_no_more_octets_than_they_sent() -> Result<()> {
    let stage = Stage::new()?;
    let daemon = stage.daemon(&["--listen", "0.0.0.0"])?;

    let reply = stage.dig("-b 198.51.100.9 @198.51.100.1 +qr www.example.test")?;
    assert!(reply.contains("status: REFUSED"), "{reply}");
    let sizes: Vec<u32> = reply
        .lines()
        .filter_map(|line| line.split_once("SIZE").map(|(_, rest)| rest))
        .filter_map(|rest| rest.split_whitespace().last()?.parse().ok())
        .collect();
    if let [sent, received] = sizes[..] {
        assert!(received <= sent, "{reply}");
    }
    let tcp = stage.try_dig("+tcp -b 198.51.100.9 @198.51.100.1 www.example.test")?;
    assert_ne!(tcp.code, Some(0), "{tcp:?}");
    assert_eq!(stage.address("-b 10.1.0.9 @10.1.0.1")?, "192.0.2.80");

    let status = daemon.status()?;
    assert_eq!(status["listeners"][0]["refused"], 1, "{status:#}");
    assert!(
        status["listeners"][1]["refused"].as_u64() >= Some(1),
        "{status:#}"
    );
    assert_eq!(status["listeners"][0]["clients"], "private networks");
    Ok(())
}

#[test]
fn strangers_are_answered_where_they_are_listed_or_everybody_is() -> Result<()> {
    let stage = Stage::new()?;
    for allow in ["198.51.100.0/24", "any"] {
        let listen = format!("0.0.0.0?allow={allow}");
        let mut daemon = stage.daemon(&["--listen", &listen])?;
        for transport in ["+notcp", "+tcp"] {
            let answer = stage.address(&format!("{transport} -b 198.51.100.9 @198.51.100.1"))?;
            assert_eq!(answer, "192.0.2.80", "{allow}");
        }
        assert_eq!(
            stage.address("-b 10.1.0.9 @10.1.0.1")?,
            "192.0.2.80",
            "{allow}"
        );
        daemon.stop()?;
    }
    Ok(())
}

#[test]
fn an_ordinary_user_runs_it_at_a_high_port() -> Result<()> {
    let stage = Stage::new()?;
    let upstream = format!("udp://{RESOLVER_V4}");
    let mut daemon =
        stage.unprivileged(&["--listen", "0.0.0.0:5353", "--upstream", &upstream], &[])?;

    for transport in ["+notcp", "+tcp"] {
        assert_eq!(
            stage.address(&format!("{transport} -p 5353 @10.1.0.1"))?,
            "192.0.2.80"
        );
    }
    let status = daemon.ask("status")?;
    assert!(status.stdout.contains("udp://0.0.0.0:5353"), "{status:?}");
    assert_eq!(daemon.process.end(Signal::SIGTERM)?.code(), Some(0));
    Ok(())
}

#[test]
fn an_ordinary_user_is_told_what_takes_privileges() -> Result<()> {
    let stage = Stage::new()?;
    for (arguments, told) in [
        (
            &["--listen", "10.1.0.1"][..],
            "ports below 1024 take root or CAP_NET_BIND_SERVICE",
        ),
        (
            &["--listen", "10.1.0.1:5353", "--mark", "7"],
            "takes CAP_NET_ADMIN",
        ),
        (
            &[
                "--listen",
                "10.1.0.1:5353",
                "--control",
                "/run/nowhere/control.sock",
            ],
            "choose another with --control",
        ),
    ] {
        let exit =
            finish(stage.unprivileged_command(arguments, &[], Path::new("/nonexistent"))?)?;
        assert!(matches!(exit.code, Some(1 | 2)), "{exit:?}");
        assert!(last_line(&exit).contains(told), "{exit:?}");
    }
    Ok(())
}

#[test]
fn the_environment_of_a_simple_proxy_makes_one_that_asks_over_tls() -> Result<()> {
    let stage = Stage::new()?;
    let ca = Authority::new("Lab")?;
    let identity = ca.issue(&[EncryptedServer::ADDRESS])?;
    let _server = TlsResponder::start(
        &stage.net,
        EncryptedServer::dot(),
        &identity,
        None,
        |_, query| {
            let reply = dns::address_reply(query, Responder::FAR_ANSWER);
            Deed::Answer(reply.into_iter().collect())
        },
    )?;
    let resolver = format!("{}?ca={}", EncryptedServer::ADDRESS, ca.file().display());
    readable(ca.file())?;
    let _daemon = stage.unprivileged(
        &[],
        &[
            ("BIND_ADDRESS", "10.1.0.1"),
            ("BIND_PORT", "5300"),
            ("PROTO", "udp"),
            ("DOT_ADDRESS", &resolver),
            ("DOT_PORT", "853"),
            ("LOG_LEVEL", "DEBUG"),
        ],
    )?;

    let answer = stage.address("-p 5300 @10.1.0.1")?;

    assert_eq!(answer, Responder::FAR_ANSWER.to_string());
    let tcp = stage.try_dig("+tcp -p 5300 @10.1.0.1 www.example.test")?;
    assert_ne!(tcp.code, Some(0), "{tcp:?}");
    Ok(())
}

#[test]
fn an_environment_that_makes_no_proxy_is_told_by_its_name() -> Result<()> {
    let stage = Stage::new()?;
    let mut command = stage.host.command(binary()?);
    command.args(["run"]).env("DOT_ADDRESS", "dns.example");
    let exit = finish(command)?;
    assert_eq!(exit.code, Some(2), "{exit:?}");
    assert!(
        exit.stderr.starts_with("interceptor: DOT_ADDRESS: "),
        "{exit:?}"
    );
    Ok(())
}

#[test]
fn a_tls_listener_answers_clients_that_trust_its_certificate() -> Result<()> {
    let stage = Stage::new()?;
    let ca = Authority::new("Lab")?;
    let identity = ca.issue(&[NAME])?;
    let daemon = stage.daemon(&["--listen", &tls("10.1.0.1", &identity)])?;

    let trusting = format!("+tls-ca={} +tls-hostname={NAME}", ca.file().display());
    for _ in 0..3 {
        let answer = stage.kdig(&format!("{trusting} +short @10.1.0.1 www.example.test"))?;
        assert_eq!(answer.trim(), "192.0.2.80");
    }
    let big = stage.kdig(&format!(
        "{trusting} +short @10.1.0.1 TXT big60k.example.test"
    ))?;
    assert_eq!(big.lines().count(), 226);
    let other = stage.kdig(&format!(
        "+tls-ca={} +tls-hostname=other.test @10.1.0.1 www.example.test",
        ca.file().display()
    ));
    assert!(other.is_err());

    let status = daemon.status()?;
    assert_eq!(status["listeners"][0]["url"], "tls://10.1.0.1:853");
    Ok(())
}

#[test]
fn padded_queries_over_tls_get_padded_answers() -> Result<()> {
    let stage = Stage::new()?;
    let ca = Authority::new("Lab")?;
    let identity = ca.issue(&[NAME])?;
    let _daemon = stage.daemon(&["--listen", &tls("10.1.0.1", &identity)])?;

    let reply = stage.kdig("+tls +padding=128 @10.1.0.1 www.example.test")?;

    assert!(reply.contains("Received 468 B"), "{reply}");
    Ok(())
}

#[test]
fn a_certificate_that_was_replaced_is_taken_and_a_broken_one_is_not() -> Result<()> {
    let stage = Stage::new()?;
    let ca = Authority::new("Lab")?;
    let scratch = Scratch::new()?;
    let install = |identity: &Identity| -> Result<Identity> {
        let installed = Identity {
            certificate: scratch.path("server.pem"),
            key: scratch.path("server.key"),
        };
        fs::copy(&identity.certificate, &installed.certificate)?;
        fs::copy(&identity.key, &installed.key)?;
        Ok(installed)
    };
    let installed = install(&ca.issue(&[NAME])?)?;
    let mut daemon = stage.daemon(&["--listen", &tls("10.1.0.1", &installed)])?;
    let answers_as = |name: &str| {
        let trusting = format!("+tls-ca={} +tls-hostname={name}", ca.file().display());
        let answer = stage.kdig(&format!("{trusting} +short @10.1.0.1 www.example.test"));
        answer.is_ok_and(|answer| answer.trim() == "192.0.2.80")
    };
    assert!(answers_as(NAME));

    install(&ca.issue(&["renewed.test"])?)?;
    until("the new certificate is shown", || {
        answers_as("renewed.test").then_some(())
    })?;
    fs::write(&installed.certificate, "-----BEGIN")?;
    daemon.wait_log("keeps its certificate")?;

    assert!(answers_as("renewed.test"));
    Ok(())
}

#[test]
fn sockets_of_a_service_manager_are_served() -> Result<()> {
    let stage = Stage::new()?;
    let udp = stage.host.udp(SocketAddr::from(([10, 1, 0, 1], 53)))?;
    let tcp = stage.host.listen(SocketAddr::from(([10, 1, 0, 2], 53)))?;
    let scratch = Scratch::new()?;
    let descriptors = [udp.as_fd(), tcp.as_fd()];
    for descriptor in descriptors {
        fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    let numbers = descriptors.map(|it| std::os::fd::AsRawFd::as_raw_fd(&it));
    let mut command = stage.host.command("bash");
    command.arg("-c").arg(format!(
        "exec 8<&{} 9<&{} 3<&8 4<&9 8<&- 9<&-; LISTEN_PID=$$ LISTEN_FDS=2 exec {} run --control {} --upstream udp://{RESOLVER_V4}",
        numbers[0],
        numbers[1],
        binary()?.display(),
        scratch.path("control.sock").display(),
    ));
    let mut process = Process::spawn("interceptor", command)?;
    for descriptor in descriptors {
        fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    process.wait_for_line("ready")?;
    drop((udp, tcp));

    assert_eq!(stage.address("+notcp @10.1.0.1")?, "192.0.2.80");
    assert_eq!(stage.address("+tcp @10.1.0.2")?, "192.0.2.80");
    assert_eq!(process.end(Signal::SIGTERM)?.code(), Some(0));
    Ok(())
}

#[test]
fn an_address_in_use_is_told_with_who_has_it_and_nothing_is_left() -> Result<()> {
    let stage = Stage::new()?;
    let _other = stage.host.udp(SocketAddr::from(([10, 1, 0, 1], 53)))?;

    let exit = interceptor(
        &stage.host,
        &[
            "run",
            "--listen",
            "10.1.0.2",
            "--listen",
            "10.1.0.1",
            "--address",
            "10.30.30.30",
        ],
    )?;

    assert_eq!(exit.code, Some(2), "{exit:?}");
    let line = last_line(&exit);
    assert!(
        line.starts_with("interceptor: cannot listen at udp://10.1.0.1:53: "),
        "{exit:?}"
    );
    let me = format!("(pid {}) has that port", std::process::id());
    assert!(line.contains(&me), "{exit:?}");
    let links = stage.host.run("ip -brief link")?;
    assert!(!links.contains("icept"), "{links}");
    let check = interceptor(&stage.host, &["check", "--listen", "10.1.0.1"])?;
    assert!(check.stdout.contains("has that port"), "{check:?}");
    Ok(())
}

#[test]
fn an_address_of_nobody_and_missing_files_are_told() -> Result<()> {
    let stage = Stage::new()?;
    for (listen, told) in [
        ("10.99.0.1", "no interface here has that address"),
        (
            "tls://10.1.0.1?cert=/nonexistent&key=/nonexistent",
            "cannot read /nonexistent",
        ),
    ] {
        let exit = interceptor(&stage.host, &["run", "--listen", listen])?;
        assert_eq!(exit.code, Some(2), "{exit:?}");
        assert!(last_line(&exit).contains(told), "{exit:?}");
    }
    Ok(())
}

#[test]
fn thousands_of_idle_connections_are_bounded_and_lock_nobody_out() -> Result<()> {
    const CAP: usize = 100;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let stage = Stage::new()?;
    let cap = CAP.to_string();
    let daemon = stage.daemon(&[
        "--listen",
        "10.1.0.1",
        "--tcp-connections",
        &cap,
        "--tcp-idle",
        "10min",
    ])?;

    let server = SocketAddr::from(([10, 1, 0, 1], 53));
    let idle: Vec<TcpStream> = stage.client.enter(|| {
        (0..3000)
            .map(|_| TcpStream::connect_timeout(&server, Duration::from_secs(30)))
            .collect::<Result<_, _>>()
    })??;

    assert_eq!(stage.address("+tcp @10.1.0.1")?, "192.0.2.80");
    daemon.wait_status("what is too much is closed", |status| {
        status["dns"]["open_connections"].as_u64() <= Some(CAP as u64)
            && status["listeners"][1]["evicted"].as_u64() >= Some(2900)
    })?;
    let files = fs::read_dir(format!("/proc/{}/fd", daemon.pid()))?.count();
    assert!(files < CAP + 100, "{files}");
    let mut first = idle.first().context("a connection")?;
    first.set_read_timeout(Some(Duration::from_secs(30)))?;
    match lab::uninterrupted(|| first.read(&mut [0])) {
        Ok(length) => assert_eq!(length, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    Ok(())
}

#[test]
fn a_port_is_handed_from_all_addresses_to_one_and_back_and_no_query_is_lost() -> Result<()> {
    let stage = Stage::new()?;
    let scratch = Scratch::new()?;
    let listen_at = |address: &str| {
        let text = format!("[[listen]]\naddress = \"{address}\"\nallow = [\"10.0.0.0/8\"]\n");
        scratch.write("interceptor.toml", text)
    };
    let path = listen_at("0.0.0.0")?.display().to_string();
    let daemon = stage.daemon(&["--config", &path])?;
    let server = "10.1.0.1:53".parse()?;
    let load = Load::udp(&stage.client, server, 4)?;

    for address in ["10.1.0.1", "0.0.0.0", "10.1.0.1"] {
        load.progress(50)?;
        listen_at(address)?;
        daemon.ask(&["reload"])?;
        load.progress(50)?;
        for transport in ["+notcp", "+tcp"] {
            let answer = stage.address(&format!("{transport} @10.1.0.1"))?;
            assert_eq!(answer, "192.0.2.80", "{address} {transport}");
        }
        let other = stage.try_dig("+short @10.1.0.2 www.example.test")?;
        assert_eq!(other.stdout.contains("192.0.2.80"), address == "0.0.0.0");
    }

    let report = load.stop()?;
    assert_eq!((report.lost, report.wrong), (0, 0), "{report:?}");
    Ok(())
}

/// A host with a resolver on one side and clients on the other.
///
/// ```text
///   net 192.0.2.53 ── host ── client: 10.1.0.9 (private), 198.51.100.9 (public), fd01::9
/// ```
struct Stage {
    net: Arc<Namespace>,
    host: Arc<Namespace>,
    client: Arc<Namespace>,
    _resolver: Unbound,
}

/// A daemon that runs as an ordinary user.
struct OrdinaryDaemon {
    process: Process,
    runtime: Scratch,
}

impl Stage {
    fn new() -> Result<Self> {
        let net = Arc::new(Namespace::new("net")?);
        let host = Arc::new(Namespace::new("host")?);
        let client = Arc::new(Namespace::new("client")?);
        veth(
            VethEnd {
                namespace: &net,
                name: "eth0",
                addresses: &["192.0.2.53/24", "192.0.2.54/24"],
            },
            VethEnd {
                namespace: &host,
                name: "eth0",
                addresses: &["192.0.2.2/24"],
            },
        )?;
        veth(
            VethEnd {
                namespace: &host,
                name: "eth1",
                addresses: &[
                    "10.1.0.1/24",
                    "10.1.0.2/24",
                    "198.51.100.1/24",
                    "fd01::1/64",
                    "fd01::2/64",
                ],
            },
            VethEnd {
                namespace: &client,
                name: "eth0",
                addresses: &["10.1.0.9/24", "198.51.100.9/24", "fd01::9/64"],
            },
        )?;
        let resolver = Unbound::start(&net, &[RESOLVER_V4])?;
        Ok(Self {
            net,
            host,
            client,
            _resolver: resolver,
        })
    }

    fn daemon(&self, arguments: &[&str]) -> Result<Daemon> {
        let upstream = format!("udp://{RESOLVER_V4}");
        let mut line = vec!["--upstream", &upstream];
        line.extend(arguments);
        Daemon::start(&self.host, &line)
    }

    fn unprivileged(
        &self,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<OrdinaryDaemon> {
        let runtime = Scratch::new()?;
        let directory = runtime.path("");
        chown(&directory, Some(NOBODY), Some(NOBODY))?;
        let command = self.unprivileged_command(arguments, environment, &directory)?;
        let mut process = Process::spawn("interceptor", command)?;
        process.wait_for_line("ready")?;
        Ok(OrdinaryDaemon { process, runtime })
    }

    fn unprivileged_command(
        &self,
        arguments: &[&str],
        environment: &[(&str, &str)],
        runtime: &Path,
    ) -> Result<Command> {
        let mut inner = Command::new(binary()?);
        inner.arg("run").args(arguments);
        let wrapped = unprivileged(&inner);
        let mut command = self.host.command(wrapped.get_program());
        command
            .args(wrapped.get_args())
            .envs(environment.iter().copied())
            .env("XDG_RUNTIME_DIR", runtime);
        Ok(command)
    }

    fn dig(&self, arguments: &str) -> Result<String> {
        self.client
            .run(&format!("dig +tries=1 +time=15 {arguments}"))
    }

    fn try_dig(&self, arguments: &str) -> Result<Exit> {
        let line = format!("dig +tries=1 +time=2 {arguments}");
        finish(self.client.line(&line)?)
    }

    fn kdig(&self, arguments: &str) -> Result<String> {
        self.client
            .run(&format!("kdig +retry=0 +timeout=15 {arguments}"))
    }

    /// The address of `www.example.test`, asked as `arguments` say.
    fn address(&self, arguments: &str) -> Result<String> {
        let answer = self.dig(&format!("+short {arguments} www.example.test"))?;
        let answer = answer.trim();
        ensure!(answer.parse::<IpAddr>().is_ok(), "no address: {answer}");
        Ok(answer.to_owned())
    }
}

impl OrdinaryDaemon {
    fn ask(&self, command: &str) -> Result<Exit> {
        let mut client = Command::new(binary()?);
        let socket = self.runtime.path("interceptor/control.sock");
        client.arg(command).arg("--control").arg(socket);
        finish(client)
    }
}

/// A TLS listener at `address`.
fn tls(address: &str, identity: &Identity) -> String {
    format!(
        "tls://{address}?cert={}&key={}",
        identity.certificate.display(),
        identity.key.display()
    )
}

/// Lets everybody read what is in the scratch directory of `file`.
fn readable(file: &Path) -> Result<()> {
    let directory = file.parent().context("a directory")?;
    chown(directory, Some(NOBODY), Some(NOBODY))?;
    Ok(())
}

fn last_line(exit: &Exit) -> &str {
    exit.stderr.lines().last().unwrap_or_default()
}
