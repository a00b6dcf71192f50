//! What the kernel answers by itself is what user space would have answered, and never what it would no longer.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use lab::dns::{self, Query};
use lab::{
    Capture, Daemon, Lab, Namespace, PEER_V4, Responder, Scratch, interceptor, patience,
    refuse_map_of, rounds, until,
};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};
use rand::RngExt as _;
use rand::seq::IndexedRandom as _;
use serde_json::Value;
use tempfile::NamedTempFile;

#[test]
fn what_was_asked_twice_is_answered_in_the_kernel_and_the_tunnel_sees_nothing() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    lab.client.reverse_path_filter("1")?;
    drop_invalid(&lab)?;
    let daemon = lab.daemon(&[])?;
    let capture = Capture::start(&lab.peer, lab.tunnel.peer_interface())?;
    let servers = ["10.30.30.30", "fd30:30:30::30"];

    for server in servers {
        for arguments in ["", "+noedns", "+dnssec", "+cookie"] {
            let line = format!("+notcp @{server} {arguments} www.example.test");
            // From the upstream, then from memory, which offers it to the kernel.
            lab.dig(&line)?;
            lab.dig(&line)?;
            let before = answered(&daemon)?;
            let reply = lab.dig(&line)?;
            assert!(reply.contains("192.0.2.80"), "{line}: {reply}");
            assert_eq!(answered(&daemon)? - before, 1, "{line}");
        }
    }

    lab.ping(PEER_V4)?;
    capture.wait_for("ICMP", |packet| packet.protocol == 1)?;
    let leaked = capture.matching(|packet| packet.involves_port(53))?;
    assert_eq!(leaked, Vec::new());
    Ok(())
}

#[test]
fn other_upstreams_and_routes_do_not_keep_the_kernel_from_answering() -> Result<()> {
    const NAMES: [&str; 2] = ["h1.example.test", "h2.routed.example.test"];
    let lab = Lab::client_with_tunnel()?;
    let file = NamedTempFile::new()?;
    let write = |upstreams: &str| {
        let text = format!(
            "[tunnel]\ninterfaces = [\"{}\"]\n[dns]\nupstreams = [{upstreams}]\n\
             [[route]]\ndomains = [\"routed.example.test\"]\nupstreams = [\"tcp://192.0.2.53\"]\n",
            lab.tunnel.client_interface()
        );
        fs::write(file.path(), text)
    };
    write("\"udp://192.0.2.53\"")?;
    let path = file.path().to_string_lossy();
    let daemon = Daemon::start(&lab.client, &["--config", &path])?;
    daemon.wait_attached(lab.tunnel.client_interface())?;

    for upstreams in [None, Some("\"tcp://192.0.2.53\", \"udp://192.0.2.53\"")] {
        if let Some(upstreams) = upstreams {
            write(upstreams)?;
            daemon.ask(&["reload"])?;
        }
        for name in NAMES {
            let line = format!("+notcp @10.30.30.30 {name}");
            lab.dig(&line)?;
            lab.dig(&line)?;
            let before = answered(&daemon)?;
            lab.dig(&line)?;
            assert_eq!(answered(&daemon)? - before, 1, "{upstreams:?}: {name}");
            let kept = daemon.ask(&["cache", "lookup", name, "--json"])?;
            let kept: Vec<Value> = serde_json::from_str(&kept)?;
            let by_kernel = kept.iter().filter(|it| it["tier"] == "kernel");
            let hits: Vec<_> = by_kernel.map(|it| it["hits"].as_u64()).collect();
            assert!(matches!(hits[..], [Some(1..)]), "{kept:?}");
        }
    }
    Ok(())
}

#[test]
fn where_the_kernel_refuses_what_answers_it_is_said_once_and_all_is_answered() -> Result<()> {
    // A call of a function that no kernel has.
    const REFUSED: [u8; 8] = [0x85, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f];
    const OBJECT: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../interceptor/bpf/interceptor.o"
    );
    let lab = Lab::client_with_tunnel()?;
    let mut object = fs::read(OBJECT)?;
    for at in places_of_function(&object, "programs6answer")? {
        object[at..at + REFUSED.len()].copy_from_slice(&REFUSED);
    }
    let file = NamedTempFile::new()?;
    fs::write(file.path(), object)?;
    let path = file.path().to_string_lossy();
    let daemon = lab.daemon(&["--bpf-object", &path])?;

    for _ in 0..3 {
        let reply = lab.dig("+notcp @10.30.30.30 www.example.test")?;
        assert!(reply.contains("192.0.2.80"), "{reply}");
    }

    assert_eq!(answered(&daemon)?, 0);
    let log = daemon.log();
    assert_eq!(
        log.matches("gives no answers by itself").count(),
        1,
        "{log}"
    );
    assert!(!log.contains("the kernel keeps answers"), "{log}");
    Ok(())
}

#[test]
fn where_the_kernel_refuses_the_map_of_answers_it_is_said_once_and_all_is_answered() -> Result<()> {
    const ENTRIES: u32 = 12_345;
    let lab = Lab::client_with_tunnel()?;
    let interface = lab.tunnel.client_interface();
    let scratch = Scratch::new()?;
    let settings = scratch.path("settings");
    // The daemon waits until somebody writes there.
    mkfifo(&settings, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let path = settings.display().to_string();
    let arguments = ["--config", &path, "-i", interface];
    let arguments = [&arguments[..], &["--upstream", "udp://192.0.2.53"]].concat();
    let mut daemon = Daemon::launch(&lab.client, &arguments)?;
    let mut writer = until("the daemon reads its settings", || {
        let mut options = File::options();
        let options = options.write(true).custom_flags(libc::O_NONBLOCK);
        options.open(&settings).ok()
    })?;
    refuse_map_of(daemon.pid(), ENTRIES, move || {
        write!(writer, "[kernel_cache]\nentries = {ENTRIES}\n")?;
        Ok(())
    })?;
    daemon.wait_ready()?;
    daemon.wait_attached(interface)?;

    for transport in ["+notcp", "+notcp", "+notcp", "+tcp"] {
        let reply = lab.dig(&format!("{transport} @10.30.30.30 www.example.test"))?;
        assert!(reply.contains("192.0.2.80"), "{reply}");
    }

    assert_eq!(answered(&daemon)?, 0);
    let log = daemon.log();
    assert_eq!(
        log.matches("the kernel cannot keep answers").count(),
        1,
        "{log}"
    );
    assert!(!log.contains("the kernel keeps answers"), "{log}");
    Ok(())
}

#[test]
fn that_the_kernel_keeps_answers_is_said_once_there_is_a_tunnel_and_only_then() -> Result<()> {
    const SAID: &str = "the kernel keeps answers";
    let lab = Lab::client_with_tunnel()?;
    let interface = lab.tunnel.client_interface();
    let file = NamedTempFile::new()?;
    let write = |tunnels: &str| {
        let tunnels = format!("[tunnel]\ninterfaces = [{tunnels}]\n");
        let dns = "[dns]\nupstreams = [\"udp://192.0.2.53\"]\n";
        fs::write(file.path(), tunnels + dns)
    };
    write("")?;
    let path = file.path().to_string_lossy();
    let mut daemon = Daemon::start(&lab.client, &["--config", &path])?;
    assert!(!daemon.log().contains(SAID), "{}", daemon.log());

    let tunnel = format!("\"{interface}\"");
    for tunnels in [&tunnel, "", &tunnel] {
        write(tunnels)?;
        daemon.ask(&["reload"])?;
    }

    daemon.wait_log(SAID)?;
    assert_eq!(daemon.log().matches(SAID).count(), 1, "{}", daemon.log());
    Ok(())
}

#[test]
fn absurd_sizes_of_the_kernels_cache_are_told_with_those_that_can_be() -> Result<()> {
    let namespace = Namespace::new("absurd")?;
    for size in [
        "0",
        "15",
        "-1",
        "1048577",
        "4294967295",
        "4294967296",
        "99999999999999999999",
    ] {
        let exit = interceptor(&namespace, &["run", &format!("--kernel-cache={size}")])?;
        let expected = format!("{size} is out of range; it can be `on`, `off` or 16 to 1048576");
        assert_ne!(exit.code, Some(0), "{size}");
        assert!(exit.stderr.contains(&expected), "{size}: {exit:?}");
        assert_eq!(exit.stderr.lines().count(), 1, "{size}: {exit:?}");
    }
    Ok(())
}

#[test]
fn kernel_and_user_space_answer_thousands_of_questions_alike() -> Result<()> {
    let questions = rounds(3000);
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&[])?;
    let mut random = rand::rng();
    let mut sockets = BTreeMap::new();
    for server in [Lab::dns_v4(), Lab::dns_v6()] {
        sockets.insert(
            server,
            (lab.client.udp_to(server)?, Stream::to(&lab, server)?),
        );
    }
    let before = answered(&daemon)?;

    for _ in 0..questions {
        let query = question(&mut random);
        for (datagrams, stream) in sockets.values_mut() {
            // The first time it is the upstream's own reply; from then on it is what is remembered.
            stream.exchange(&query)?;
            let began = Instant::now();
            let expected = stream.exchange(&query)?;
            let first = exchange(datagrams, &query)?;
            let second = exchange(datagrams, &query)?;
            for reply in [first, second] {
                if reply[2] & 2 != 0 {
                    ensure!(expected.len() > reply.len(), "truncated for nothing");
                    continue;
                }
                ensure!(
                    is_same(&reply, &expected, began.elapsed()),
                    "{query:?}\n{reply:?}\n{expected:?}"
                );
            }
        }
    }

    let answered = answered(&daemon)? - before;
    assert!(
        answered > u64::from(questions),
        "{answered} answered in the kernel"
    );
    Ok(())
}

#[test]
fn no_answer_is_older_than_the_last_of_a_thousand_flushes_reloads_and_restarts() -> Result<()> {
    const NAME: &str = "changing.example.test";
    let changes = rounds(1000);
    let lab = Lab::client_with_tunnel()?;
    lab.net.run("ip address add 192.0.2.55/32 dev lo")?;
    let editions = Editions::default();
    let _upstreams = ["192.0.2.54:53", "192.0.2.55:53"]
        .map(|place| editions.upstream(&lab, place))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let file = NamedTempFile::new()?;
    let interface = lab.tunnel.client_interface();
    let ask_at = |upstream: &str, further: &str| {
        let tunnel = format!("[tunnel]\ninterfaces = [\"{interface}\"]\n");
        let dns = format!("[dns]\nupstreams = [\"udp://{upstream}\"]\n");
        fs::write(file.path(), tunnel + &dns + further)
    };
    let route = "[[route]]\ndomains = [\"example.test\"]\nupstreams = [\"udp://192.0.2.55\"]\n";
    ask_at("192.0.2.55", "")?;
    let path = file.path().to_string_lossy();
    let mut daemon = Daemon::start(&lab.client, &["--config", &path])?.quiet();
    daemon.wait_attached(interface)?;
    let client = lab.client.udp_to(Lab::dns_v4())?;
    let query = Query::new(NAME, 1).wire();
    let crowd: Vec<UdpSocket> = (0..2)
        .map(|_| lab.client.udp_to(Lab::dns_v4()))
        .collect::<Result<_>>()?;
    let stop = AtomicBool::new(false);
    let mut restarts = 0;

    let (outcome, checked) = thread::scope(|scope| {
        let crowd: Vec<_> = crowd
            .iter()
            .map(|socket| scope.spawn(|| editions.check_until(&stop, socket, NAME)))
            .collect();
        let outcome = (1..=changes).try_for_each(|change| {
            editions.begin(change);
            match change % 20 {
                0 => {
                    ensure!(answered(&daemon)? > 0, "change {change}: all in user space");
                    if change % 40 == 0 {
                        daemon.stop()?;
                    } else {
                        daemon.kill()?;
                    }
                    daemon.start_again()?;
                    daemon.wait_attached(interface)?;
                    restarts += 1;
                }
                10 => {
                    ask_at("192.0.2.54", "")?;
                    daemon.ask(&["reload"])?;
                }
                15 => {
                    ask_at("192.0.2.54", route)?;
                    daemon.ask(&["reload"])?;
                }
                5 => {
                    let id = daemon.rule_add(&["10.30.30.31"])?;
                    flush(&daemon)?;
                    daemon.rule_remove(id)?;
                }
                even if even % 2 == 0 => flush(&daemon)?,
                odd if odd % 3 == 0 => drop(daemon.ask(&["cache", "flush", NAME])?),
                _ => drop(daemon.ask(&["cache", "flush", "--suffix", "example.test"])?),
            }
            editions.end(change);
            for _ in 0..3 {
                let reply = dns::parse(&exchange(&client, &query)?)?;
                let got = dns::first_address(&reply);
                ensure!(got == Some(address(change)), "change {change}: {got:?}");
            }
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let checked: Result<Vec<u32>> = crowd
            .into_iter()
            .map(|checking| checking.join().map_err(|_| anyhow!("a client panicked"))?)
            .collect();
        (outcome, checked)
    });

    outcome?;
    let checked: u32 = checked?.into_iter().sum();
    assert!(checked > changes, "{checked} answers");
    assert_eq!(restarts, changes / 20);
    Ok(())
}

#[test]
fn names_that_only_the_kernel_sees_are_asked_for_ahead_of_their_expiry() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let upstream = Responder::start(&lab.net, "192.0.2.54:53".parse()?, |query| {
        let reply = dns::address_reply_for(query, Responder::FAR_ANSWER, 20);
        reply.into_iter().collect()
    })?;
    let daemon = daemon_at(&lab, "udp://192.0.2.54")?;
    let client = lab.client.udp_to(Lab::dns_v4())?;
    let query = Query::new("popular.example.test", 1).wire();
    exchange(&client, &query)?;
    let asked = upstream.seen();

    let mut least = u32::MAX;
    until("the name is asked for again", || {
        let reply = dns::parse(&exchange(&client, &query).ok()?).ok()?;
        least = least.min(reply.answers.first()?.ttl);
        thread::sleep(Duration::from_millis(20));
        (upstream.seen() > asked).then_some(())
    })?;

    assert!(least > 0, "it was renewed before it expired");
    assert_eq!(count(&daemon, "question_renewal")?, 1);
    assert_eq!(count(&daemon, "question_expired")?, 0);
    Ok(())
}

#[test]
fn names_that_only_the_kernel_sees_stay_in_memory_through_a_flood_of_others() -> Result<()> {
    // More than twice what fits into the memory, each name asked for again so that it takes the place of others.
    const FLOOD: u32 = 3000;
    const RECORDS: u8 = 40;
    const NAMES: [&str; 2] = ["popular", "forgotten"];
    let lab = Lab::client_with_tunnel()?;
    let asked: Arc<[AtomicU32; 2]> = Arc::default();
    let _upstream = Responder::start(&lab.net, "192.0.2.54:53".parse()?, {
        let asked = Arc::clone(&asked);
        move |query| {
            let mut records = RECORDS;
            for (name, asked) in NAMES.iter().zip(&*asked) {
                if query.windows(name.len()).any(|it| it == name.as_bytes()) {
                    records = 1;
                    asked.fetch_add(1, Ordering::SeqCst);
                }
            }
            let addresses = (0..records).map(|last| Ipv4Addr::new(198, 18, 0, last));
            dns::addresses_reply_for(query, addresses, 3600)
                .into_iter()
                .collect()
        }
    })?;
    let interface = lab.tunnel.client_interface();
    let arguments = ["-i", interface, "--upstream", "udp://192.0.2.54"];
    let arguments = [&arguments[..], &["--cache-size", "1MiB"]].concat();
    let daemon = Daemon::start(&lab.client, &arguments)?;
    daemon.wait_attached(interface)?;
    let client = lab.client.udp_to(Lab::dns_v4())?;
    let mut stream = Stream::to(&lab, Lab::dns_v4())?;
    let [popular, forgotten] =
        NAMES.map(|name| Query::new(&format!("{name}.example.test"), 1).wire());
    for query in [&popular, &forgotten] {
        exchange(&client, query)?;
        exchange(&client, query)?;
    }
    let stop = AtomicBool::new(false);

    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = exchange(&client, &popular);
                thread::sleep(Duration::from_millis(5));
            }
        });
        let outcome = (0..FLOOD).try_for_each(|number| {
            let query = Query::new(&format!("flood{number}.example.test"), 1).wire();
            // The daemon looks from time to time what the kernel has given.
            thread::sleep(Duration::from_millis(3));
            (0..2).try_for_each(|_| stream.exchange(&query).map(drop))
        });
        stop.store(true, Ordering::Relaxed);
        outcome
    })?;

    for query in [&popular, &forgotten] {
        stream.exchange(query)?;
    }
    let [popular, forgotten] = [0, 1].map(|at| asked[at].load(Ordering::SeqCst));
    assert_eq!((popular, forgotten), (1, 2));
    Ok(())
}

#[test]
fn switched_off_the_kernel_answers_nothing_and_all_is_answered() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&["--kernel-cache", "off"])?;
    for _ in 0..3 {
        let answer = lab.dig("+short @10.30.30.30 www.example.test")?;
        assert_eq!(answer, "192.0.2.80\n");
    }
    assert_eq!(answered(&daemon)?, 0);
    Ok(())
}

/// What upstreams say, which changes: an answer tells by its address of which edition it is.
#[derive(Clone, Default)]
struct Editions {
    /// What upstreams say from here on.
    said: Arc<AtomicU32>,
    /// What is known to everybody: older answers are stale.
    known: Arc<AtomicU32>,
}

impl Editions {
    fn upstream(&self, lab: &Lab, place: &str) -> Result<Responder> {
        let said = Arc::clone(&self.said);
        Responder::start(&lab.net, place.parse()?, move |query| {
            let address = address(said.load(Ordering::SeqCst));
            let reply = dns::address_reply_for(query, address, 3600);
            reply.into_iter().collect()
        })
    }

    fn begin(&self, edition: u32) {
        self.said.store(edition, Ordering::SeqCst);
    }

    fn end(&self, edition: u32) {
        self.known.store(edition, Ordering::SeqCst);
    }

    /// Asks for `name` without rest, which need not be answered while there is no daemon; gives the number of answers, or
    /// the first that is older than what was known when it was asked for.
    fn check_until(&self, stop: &AtomicBool, socket: &UdpSocket, name: &str) -> Result<u32> {
        let mut checked = 0;
        let mut buffer = [0; 512];
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        for id in (0..=u16::MAX).cycle() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let oldest = self.known.load(Ordering::SeqCst);
            // Nobody may be there to take it.
            let _ = socket.send(&Query::new(name, 1).with_id(id).wire());
            while let Ok(length) = socket.recv(&mut buffer) {
                let reply = dns::parse(&buffer[..length])?;
                if reply.metadata.id != id {
                    continue;
                }
                if let Some(got) = dns::first_address(&reply) {
                    let editions = oldest..=self.said.load(Ordering::SeqCst);
                    let mut expected = editions.clone().map(address);
                    ensure!(expected.any(|it| it == got), "{got}, not of {editions:?}");
                    checked += 1;
                }
                break;
            }
        }
        Ok(checked)
    }
}

/// A connection to the DNS service, which user space answers.
struct Stream(TcpStream);

impl Stream {
    fn to(lab: &Lab, server: SocketAddr) -> Result<Self> {
        let stream = lab.client.connect(server)?;
        stream.set_read_timeout(Some(patience()))?;
        Ok(Self(stream))
    }

    fn exchange(&mut self, query: &[u8]) -> Result<Vec<u8>> {
        let Self(stream) = self;
        stream.write_all(&dns::framed(query))?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut reply)?;
        Ok(reply)
    }
}

fn exchange(socket: &UdpSocket, query: &[u8]) -> Result<Vec<u8>> {
    let mut buffer = [0; 4096];
    socket.set_read_timeout(Some(patience()))?;
    socket.send(query)?;
    let length = lab::receive(socket, &mut buffer).context("no reply")?;
    Ok(buffer[..length].to_vec())
}

/// A query about the zone, or beside it, in random letter case, with and without EDNS.
fn question(random: &mut impl rand::Rng) -> Vec<u8> {
    const NAMES: [&str; 8] = [
        "www", "alias", "mail", "missing", "txt", "big2k", "h1", "h2",
    ];
    let name = match random.random_range(0..3) {
        0 => format!("h{}.example.test", random.random_range(0..40)),
        _ => format!("{}.example.test", NAMES.choose(random).unwrap_or(&"www")),
    };
    let name: String = name
        .chars()
        .map(|letter| {
            if random.random() {
                letter.to_ascii_uppercase()
            } else {
                letter
            }
        })
        .collect();
    let record_type = *[1, 28, 5, 15, 16, 2, 6, 33, 65]
        .choose(random)
        .unwrap_or(&1);
    let mut query = Query::new(&name, record_type);
    if random.random() {
        let sizes = [512, 700, 1232, 4096];
        query = query.with_edns(*sizes.choose(random).unwrap_or(&1232));
    }
    let is_edns = query.edns.is_some();
    let mut wire = query.wire();
    wire[3] |= *[0, 0x10, 0x20, 0x30].choose(random).unwrap_or(&0);
    if is_edns && random.random() {
        let flags = wire.len() - 4;
        wire[flags] |= 0x80;
    }
    wire
}

/// Whether two replies that were got within that time are the same but for their TTLs, which a second may have begun
/// between, and as many as have passed.
fn is_same(one: &[u8], other: &[u8], within: Duration) -> bool {
    let (Ok(mut one), Ok(mut other)) = (dns::parse(one), dns::parse(other)) else {
        return false;
    };
    for (one, other) in [
        (&mut one.answers, &mut other.answers),
        (&mut one.authorities, &mut other.authorities),
        (&mut one.additionals, &mut other.additionals),
    ] {
        for (one, other) in one.iter_mut().zip(other) {
            if u64::from(one.ttl.abs_diff(other.ttl)) > 1 + within.as_secs() {
                return false;
            }
            one.ttl = other.ttl;
        }
    }
    one.to_vec().ok() == other.to_vec().ok()
}

fn daemon_at(lab: &Lab, upstream: &str) -> Result<Daemon> {
    let interface = lab.tunnel.client_interface();
    let daemon = Daemon::start(&lab.client, &["-i", interface, "--upstream", upstream])?;
    daemon.wait_attached(interface)?;
    Ok(daemon)
}

/// Where in an object's file the functions begin whose symbols contain `name`.
fn places_of_function(object: &[u8], name: &str) -> Result<Vec<usize>> {
    let file = object::File::parse(object)?;
    let mut places = Vec::new();
    for symbol in file.symbols().filter(|it| it.kind() == SymbolKind::Text) {
        if !symbol.name()?.contains(name) {
            continue;
        }
        let index = symbol
            .section_index()
            .context("a function without section")?;
        let (start, _) = file
            .section_by_index(index)?
            .file_range()
            .context("a section that is not in the file")?;
        places.push(usize::try_from(start + symbol.address())?);
    }
    ensure!(!places.is_empty(), "no function {name}");
    Ok(places)
}

fn drop_invalid(lab: &Lab) -> Result<()> {
    for line in [
        "nft add table inet guard",
        "nft add chain inet guard in { type filter hook input priority 0 ; }",
        "nft add rule inet guard in ct state invalid drop",
        "nft add rule inet guard in udp sport 53 ct state != established drop",
    ] {
        lab.client.run(line)?;
    }
    Ok(())
}

fn flush(daemon: &Daemon) -> Result<()> {
    daemon.ask(&["cache", "flush", "--all"])?;
    Ok(())
}

fn address(version: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xc612_0000 + version)
}

fn answered(daemon: &Daemon) -> Result<u64> {
    count(daemon, "question_answered")
}

fn count(daemon: &Daemon, what: &str) -> Result<u64> {
    Ok(daemon.status()?["kernel"][what].as_u64().unwrap_or(0))
}
