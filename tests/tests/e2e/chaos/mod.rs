//! Chaos with upstreams: whatever they and the way to them do, clients get the right answer or SERVFAIL with an extended
//! error within the deadline, and afterwards the daemon is as it was: no socket, thread or task more.
//!
//! | what goes wrong | shown here | and elsewhere |
//! |---|---|---|
//! | upstream killed, link down, packets swallowed | `outages` | `encrypted`, `upstreams`: restarts, dead and silent upstreams |
//! | resets, unreachable messages | `outages` | `upstreams::an_upstream_with_a_closed_port_is_passed_over` |
//! | a connection cut in the middle of a query or reply | `outages` | `encrypted`: cut connections are replaced, sessions resumed |
//! | half-open connections | `outages` (all of an upstream) | `encrypted::a_connection_that_leads_nowhere…` (one of them) |
//! | loss and delay | `weather` | `upstreams::a_lost_query_is_sent_again` |
//! | certificates: expired, self-signed, wrong name, wrong pin | `certificates` | `encrypted`: what the error says of each |
//! | garbage, wrong IDs and questions, loops, late and unasked replies | `replies` | `upstreams::forged_and_broken_replies…` |
//! | endless replies, the longest ones | `lengths` | `upstreams::upstreams_are_reached_over_tcp_and_over_ipv6` |
//! | one upstream of three always fails | `majority` | `upstreams::an_upstream_that_refuses_is_passed_over` |
//! | our opinion of a server against kdig's | `second_opinion` | |
//!
//! netem is not in every kernel, so loss and delay come from a relay in user space ([`lab::ImpairedPath`]).

mod certificates;
mod lengths;
mod majority;
mod outages;
mod replies;
mod second_opinion;
mod weather;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lab::dns::{self, Message, ResponseCode};
use lab::{
    Act, Authority, Capture, Daemon, Identity, Lab, Scratch, ScriptedServer, Transport, patience,
    receive, until,
};

/// The servers' name, and where they are.
const NAME: &str = "dns.lab.test";
const SERVER: IpAddr = IpAddr::V4(SERVER_V4);
const SERVER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 54);

/// What no client may ever be told.
const FORGED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);

/// A lab, and servers in it that are asked over one transport each: names below `tls.example.test` over TLS, and so on.
struct Stage {
    ca: Authority,
    identity: Identity,
    /// What crosses the client's way to the servers.
    outside: Capture,
    lab: Lab,
    scratch: Scratch,
    number: AtomicU16,
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// The address that belongs to the name.
    Answered,
    /// SERVFAIL with this extended error.
    Failed(u16),
}

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    tasks: u64,
    resident_kib: u64,
    /// How long it may take to answer, by its configuration.
    deadline: Duration,
}

impl Stage {
    fn new() -> Result<Self> {
        let lab = Lab::client_with_tunnel()?;
        let ca = Authority::new("Lab Authority")?;
        Ok(Self {
            identity: ca.issue(&[NAME])?,
            ca,
            outside: Capture::start(&lab.client, "eth0")?,
            lab,
            scratch: Scratch::new()?,
            number: AtomicU16::new(0),
        })
    }

    /// A server for each of `transports` at its own port.
    fn servers(
        &self,
        transports: &[Transport],
        script: impl Fn(&[u8]) -> Vec<Act> + Clone + Send + Sync + 'static,
    ) -> Result<Vec<ScriptedServer>> {
        let start = |transport: &Transport| {
            self.server(*transport, transport.port(), &self.identity, script.clone())
        };
        transports.iter().map(start).collect()
    }

    fn server(
        &self,
        transport: Transport,
        port: u16,
        identity: &Identity,
        script: impl Fn(&[u8]) -> Vec<Act> + Send + Sync + 'static,
    ) -> Result<ScriptedServer> {
        let local = SocketAddr::new(SERVER, port);
        ScriptedServer::start(transport, &self.lab.net, local, identity, script)
    }

    /// The URL of the server for `transport` at `port`, with its name, the authority and more `parameters`.
    fn url(&self, transport: Transport, port: u16, parameters: &str) -> String {
        let scheme = transport.scheme();
        if !transport.is_encrypted() {
            return format!("{scheme}://{SERVER}:{port}");
        }
        let ca = self.ca.file().display();
        format!("{scheme}://{SERVER}:{port}?ca={ca}{parameters}#{NAME}")
    }

    /// Starts the daemon with a route for each of `transports` to its server and to `more` upstreams.
    fn daemon(&self, transports: &[Transport], more: &[String]) -> Result<Daemon> {
        let routes = transports.iter().map(|transport| {
            let mut upstreams = vec![self.url(*transport, transport.port(), "")];
            upstreams.extend_from_slice(more);
            (transport.scheme(), upstreams)
        });
        self.daemon_with(&routes.collect::<Vec<_>>())
    }

    /// Starts the daemon with a group that has `strategy` for everything, names of [`Stage::name`] included.
    fn daemon_of_group(&self, strategy: &str, upstreams: &[String]) -> Result<Daemon> {
        let file = format!(
            "[dns]\nupstreams = {upstreams:?}\nstrategy = \"{strategy}\"\n\
             attempt_timeout = \"500ms\"\ndeadline = \"{}s\"\n",
            GROUP_DEADLINE.as_secs()
        );
        self.start(&file)
    }

    /// Starts the daemon with a route for each label to upstreams.
    fn daemon_with(&self, routes: &[(&str, Vec<String>)]) -> Result<Daemon> {
        let mut text = format!(
            "[dns]\nupstreams = [\"udp://{}\"]\nattempt_timeout = \"500ms\"\ndeadline = \"{}ms\"\n",
            lab::RESOLVER_V4,
            DEADLINE.as_millis()
        );
        for (label, upstreams) in routes {
            writeln!(
                text,
                "[[route]]\ndomains = [\"{label}.{}\"]\nupstreams = {upstreams:?}",
                lab::ZONE
            )?;
        }
        self.start(&text)
    }

    fn start(&self, configuration: &str) -> Result<Daemon> {
        let file = self.scratch.write("interceptor.toml", configuration)?;
        let interface = self.lab.tunnel.client_interface();
        let file = file.display().to_string();
        let daemon = Daemon::start(&self.lab.client, &["-i", interface, "--config", &file])?;
        daemon.wait_attached(interface)?;
        Ok(daemon)
    }

    /// A name that has not been asked for: `word` says what the servers do about it, `label` by which route.
    fn name(&self, word: &str, label: &str) -> String {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        format!("{word}-{number}.{label}.{}", lab::ZONE)
    }

    /// Asks for a fresh name; an error when there is no reply, a wrong one, or a failure without explanation.
    fn ask(&self, word: &str, label: &str) -> Result<Outcome> {
        let name = self.name(word, label);
        let query = dns::Query::new(&name, 1).with_edns(1232);
        let socket = self.lab.client.udp_to(Lab::dns_v4())?;
        socket.set_read_timeout(Some(client_patience()))?;
        socket.send(&query.wire())?;
        let mut buffer = vec![0; 65_535];
        let length = receive(&socket, &mut buffer)
            .with_context(|| format!("no reply about {name} within {:?}", client_patience()))?;
        let reply = dns::parse(&buffer[..length])?;
        ensure!(reply.metadata.id == query.id, "another ID: {reply:?}");
        outcome(&reply, &name)
    }

    /// Asks over each of `transports` at the same time.
    fn ask_all(&self, word: &str, transports: &[Transport]) -> Result<Vec<Outcome>> {
        std::thread::scope(|scope| {
            let asked: Vec<_> = transports
                .iter()
                .map(|transport| scope.spawn(|| self.ask(word, transport.scheme())))
                .collect();
            asked
                .into_iter()
                .zip(transports)
                .map(|(asked, transport)| {
                    let outcome = asked.join().ok().context("the client panicked")?;
                    outcome.with_context(|| format!("over {}", transport.scheme()))
                })
                .collect()
        })
    }

    fn assert_all_answered(&self, word: &str, transports: &[Transport]) -> Result<()> {
        for (outcome, transport) in self.ask_all(word, transports)?.iter().zip(transports) {
            assert_eq!(*outcome, Outcome::Answered, "{word} over {transport:?}");
        }
        Ok(())
    }

    fn assert_all_failed(&self, word: &str, transports: &[Transport]) -> Result<()> {
        for (outcome, transport) in self.ask_all(word, transports)?.iter().zip(transports) {
            assert!(
                matches!(outcome, Outcome::Failed(_)),
                "{word} over {transport:?}: {outcome:?}"
            );
        }
        Ok(())
    }

    /// Asks for each of `words` over each of `transports` at the same time.
    fn assert_each_failed(&self, words: &[&str], transports: &[Transport]) -> Result<()> {
        std::thread::scope(|scope| {
            let asked: Vec<_> = words
                .iter()
                .map(|word| scope.spawn(|| self.assert_all_failed(word, transports)))
                .collect();
            asked
                .into_iter()
                .try_for_each(|asked| asked.join().ok().context("a client was told wrong")?)
        })
    }

    /// Asks over each of `transports` until all have answered again.
    fn wait_until_answered(&self, transports: &[Transport]) -> Result<()> {
        let mut left = transports.to_vec();
        until("every upstream answers again", || {
            let outcomes = match self.ask_all("again", &left) {
                Ok(outcomes) => outcomes,
                Err(error) => return Some(Err(error)),
            };
            let mut outcomes = outcomes.iter();
            left.retain(|_| outcomes.next() != Some(&Outcome::Answered));
            left.is_empty().then_some(Ok(()))
        })
        .with_context(|| format!("{left:?} do not"))?
    }

    /// Asks over TCP, which takes answers of any length, and gives the reply.
    fn ask_over_tcp(&self, query: &dns::Query) -> Result<Vec<u8>> {
        let mut stream = self.lab.client.connect(Lab::dns_v4())?;
        stream.set_read_timeout(Some(client_patience()))?;
        stream.write_all(&query.framed())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut reply)?;
        Ok(reply)
    }

    /// Fails when a name that belongs to an encrypted transport can be read on the client's way to the servers.
    fn assert_nothing_in_plain_text(&self) -> Result<()> {
        self.lab.ping(lab::RESOLVER_V4)?;
        self.outside.wait_for("the ping", |packet| {
            packet.protocol == 1 && packet.involves(lab::RESOLVER_V4)
        })?;
        assert_hidden(&self.outside)
    }
}

impl Holdings {
    fn of(daemon: &Daemon, deadline: Duration) -> Result<Self> {
        // Who asks for the status keeps threads busy that have nothing to do otherwise.
        let process = Self::of_process(daemon, deadline)?;
        let tasks = daemon.status()?["tasks"].as_u64().context("no tasks")?;
        Ok(Self { tasks, ..process })
    }

    /// Without tasks, which only the daemon itself knows.
    fn of_process(daemon: &Daemon, deadline: Duration) -> Result<Self> {
        let folder = format!("/proc/{}", daemon.pid());
        let status = fs::read_to_string(format!("{folder}/status"))?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next());
            Ok(number.with_context(|| format!("no {name}"))?.parse()?)
        };
        Ok(Self {
            descriptors: fs::read_dir(format!("{folder}/fd"))?.count(),
            threads: field("Threads:")? as usize,
            tasks: 0,
            resident_kib: field("VmRSS:")?,
            deadline,
        })
    }

    /// Waits until `daemon` has no query or client left and holds what it held, but for a little memory; fails as well when
    /// it says itself that a query took longer than it may.
    fn wait_until_back(self, daemon: &Daemon) -> Result<()> {
        daemon.wait_status("nothing is in flight, and tasks are given back", |status| {
            status["dns"]["in_flight"] == 0
                && status["dns"]["open_connections"] == 0
                && status["tasks"].as_u64() <= Some(self.tasks)
        })?;
        let mut last = self;
        until("sockets and threads are given back", || {
            last = Self::of_process(daemon, self.deadline).ok()?;
            let is_back = last.descriptors <= self.descriptors && last.threads <= self.threads;
            is_back.then_some(())
        })
        .with_context(|| format!("{last:?} where there was {self:?}"))?;
        let grown = last.resident_kib.saturating_sub(self.resident_kib);
        let slowest = slowest(&daemon.log())?;
        eprintln!("{grown} KiB more than before; the slowest answer took {slowest:?}");
        ensure!(grown < MOST_GROWTH_KIB, "{last:?} where there was {self:?}");
        let allowed = self.deadline + patience() / 20;
        ensure!(slowest < allowed, "a query took {slowest:?}");
        Ok(())
    }
}

/// The longest time that a log says an answer took.
fn slowest(log: &str) -> Result<Duration> {
    let times = log.lines().filter(|line| line.contains(" answered "));
    let times = times.filter_map(|line| line.split("elapsed=").nth(1));
    let times = times.map(|rest| rest.split_whitespace().next().unwrap_or_default());
    let times: Vec<_> = times.map(seconds).collect::<Result<_>>()?;
    let slowest = times.into_iter().reduce(f64::max);
    Ok(Duration::from_secs_f64(
        slowest.context("the log does not say how long answers took")?,
    ))
}

/// Seconds of a duration as the log has it, such as `1.5ms`.
fn seconds(printed: &str) -> Result<f64> {
    let unit = printed.trim_start_matches(|it: char| it.is_ascii_digit() || it == '.');
    let number: f64 = printed.trim_end_matches(unit).parse()?;
    let factor = match unit {
        "s" => 1.0,
        "ms" => 1e-3,
        "µs" => 1e-6,
        "ns" => 1e-9,
        _ => bail!("{printed} is no duration"),
    };
    Ok(number * factor)
}

fn outcome(reply: &Message, name: &str) -> Result<Outcome> {
    ensure!(
        dns::question_name(reply) == name,
        "an answer to another question than {name}: {reply:?}"
    );
    match reply.metadata.response_code {
        ResponseCode::NoError => {
            let address = dns::first_address(reply);
            ensure!(address == Some(address_of(name)), "{name}: {reply:?}");
            Ok(Outcome::Answered)
        }
        ResponseCode::ServFail => {
            let Some((code, _)) = dns::extended_error(reply) else {
                bail!("SERVFAIL about {name} without an extended error: {reply:?}");
            };
            Ok(Outcome::Failed(code))
        }
        _ => bail!("neither an answer nor SERVFAIL about {name}: {reply:?}"),
    }
}

fn assert_hidden(capture: &Capture) -> Result<()> {
    for transport in Transport::ENCRYPTED {
        let label = transport.scheme();
        let mut wire = vec![label.len() as u8];
        wire.extend_from_slice(label.as_bytes());
        wire.extend_from_slice(b"\x07example\x04test\0");
        ensure!(
            !capture.holds(&wire)?,
            "a name of {transport:?} was sent in plain text"
        );
    }
    Ok(())
}

/// What a good server says about `name`: no two names of a test have the same.
fn address_of(name: &str) -> Ipv4Addr {
    let first = name.split('.').next().unwrap_or_default();
    let number = first.rsplit('-').next().unwrap_or_default();
    let [high, low] = number.parse::<u16>().unwrap_or_default().to_be_bytes();
    Ipv4Addr::new(198, 18, high, low)
}

/// A good server's reply.
fn right(query: &[u8]) -> Vec<u8> {
    let name = dns::parse(query).map(|query| dns::question_name(&query));
    let address = address_of(&name.unwrap_or_default());
    dns::address_reply(query, address).unwrap_or_default()
}

/// What a good server does.
fn answer(query: &[u8]) -> Vec<Act> {
    vec![Act::Reply(right(query))]
}

/// Whether `query` is for a name of [`Stage::name`] with `word`.
fn is_about(query: &[u8], word: &str) -> bool {
    dns::parse(query).is_ok_and(|query| {
        let name = dns::question_name(&query);
        name.strip_prefix(word)
            .is_some_and(|rest| rest.starts_with('-'))
    })
}

/// How long a daemon with routes may take to answer, by its configuration.
const DEADLINE: Duration = Duration::from_millis(1500);
/// The same of one with a group, whose first upstreams may fail.
const GROUP_DEADLINE: Duration = Duration::from_secs(4);

/// How long a client waits: until any daemon's deadline, and as much longer as a machine with more to do than it can may
/// take to wake daemon and client. What waits for something else than the deadline (an idle timeout, retransmissions of a
/// handshake's first packet) waits longer.
fn client_patience() -> Duration {
    GROUP_DEADLINE + patience() / 6
}

/// Memory that a daemon may hold more of afterwards: pools and caches grow to what was needed once.
const MOST_GROWTH_KIB: u64 = 24 * 1024;
