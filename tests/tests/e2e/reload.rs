//! Reload: a changed file is put into force while queries are answered, all of it or nothing.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use lab::dns::{self, Query};
use lab::{
    Authority, Capture, Daemon, Deed, EncryptedServer, Lab, Load, Process, Responder, Scratch,
    ServerSoftware, TlsResponder, VIRTUAL_V4, VIRTUAL_V6,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

#[test]
fn sighup_applies_a_changed_file() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _other = responder(&lab, "192.0.2.54:53", Responder::FAR_ANSWER)?;
    let file = File::new(&lab, &upstreams(&["udp://192.0.2.53"]))?;
    let mut daemon = file.daemon(&lab, &[])?;
    assert_eq!(answer(&lab, VIRTUAL_V4)?, RESOLVER);

    file.write(&upstreams(&["udp://192.0.2.54"]))?;
    daemon.hang_up()?;
    daemon.wait_notification("RELOADING=1")?;
    daemon.wait_notification("READY=1")?;

    assert_eq!(answer(&lab, VIRTUAL_V4)?, Responder::FAR_ANSWER);
    daemon.wait_log("reloaded")
}

#[test]
fn a_file_that_cannot_be_changes_nothing_and_the_error_names_the_line() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let good = upstreams(&["udp://192.0.2.53"]);
    let file = File::new(&lab, &good)?;
    let mut daemon = file.daemon(&lab, &[])?;
    let rules = daemon.rules()?;
    let path = file.path().display().to_string();

    for (bad, place, part) in [
        (
            "[dns]\nupstreams = [\"gopher://a\"]",
            ":2:14: ",
            "dns.upstreams",
        ),
        (
            "[dns]\nupstream = []",
            ":2:1: ",
            "did you mean `dns.upstreams`?",
        ),
        (
            "[virtual]\naddresses = [\"10.1.1.1\"\n",
            ":",
            "not valid TOML",
        ),
        (
            "[[rule]]\ndestination = \"10.9.9.9\"\nport = 0",
            ":1:1: ",
            "port 0",
        ),
    ] {
        file.write_raw(bad)?;
        let exit = daemon.try_ask(&["reload"])?;
        assert_eq!(exit.code, Some(2), "{exit:?}");
        assert_eq!(exit.stderr.trim_end().lines().count(), 1, "{exit:?}");
        let prefix = format!("interceptor: {path}{place}");
        assert!(exit.stderr.starts_with(&prefix), "{exit:?}");
        assert!(exit.stderr.contains(part), "{exit:?}");
    }
    file.write_raw("[dns]\n\nrounds = 99")?;
    daemon.hang_up()?;
    daemon.wait_log(&format!("not reloaded: {path}:3:10: dns.rounds"))?;

    assert_eq!(daemon.rules()?, rules);
    assert_eq!(answer(&lab, VIRTUAL_V4)?, RESOLVER);
    file.write(&good)?;
    assert_eq!(daemon.ask(&["reload"])?, "nothing has changed\n");
    Ok(())
}

#[test]
fn what_needs_a_restart_is_refused_by_name_and_nothing_else_is_applied() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _other = responder(&lab, "192.0.2.54:53", Responder::FAR_ANSWER)?;
    let file = File::new(&lab, &upstreams(&["udp://192.0.2.53"]))?;
    let daemon = file.daemon(&lab, &[])?;

    for (section, key) in [
        ("[kernel_cache]\nentries = 64", "kernel_cache.entries"),
        ("[bypass]\ndevice = \"eth0\"", "bypass.device"),
        ("[log]\nformat = \"json\"", "log.format"),
        ("[reader]\ndevice = \"other0\"", "reader.device"),
        ("[cache]\nenabled = false", "cache.enabled"),
    ] {
        file.write(&format!("{}{section}", upstreams(&["udp://192.0.2.54"])))?;
        let exit = daemon.try_ask(&["reload"])?;
        assert_eq!(exit.code, Some(2), "{exit:?}");
        for part in [&file.path().display().to_string(), key, "needs a restart"] {
            assert!(exit.stderr.contains(part), "{part}: {exit:?}");
        }
    }

    assert_eq!(answer(&lab, VIRTUAL_V4)?, RESOLVER);
    Ok(())
}

#[test]
fn an_interface_that_another_daemon_taps_is_refused_and_nothing_else_is_applied() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _other = responder(&lab, "192.0.2.54:53", Responder::FAR_ANSWER)?;
    let _holder = Daemon::start(&lab.client, &["-i", "eth1", "--address", "10.30.50.50"])?;
    let good = upstreams(&["udp://192.0.2.53"]);
    let file = File::new(&lab, &good)?;
    let daemon = file.daemon(&lab, &[])?;
    let before = daemon.rules()?;

    file.write_with(
        &["eth0", "eth1"],
        &format!(
            "{}[[rule]]\ndestination = \"10.9.9.9\"",
            upstreams(&["udp://192.0.2.54"])
        ),
    )?;
    let exit = daemon.try_ask(&["reload"])?;

    assert_eq!(exit.code, Some(1), "{exit:?}");
    for part in ["eth1", "another interceptor", "nothing was changed"] {
        assert!(exit.stderr.contains(part), "{part}: {exit:?}");
    }
    assert_eq!(daemon.rules()?, before);
    assert!(daemon.interface_state("eth0").is_err());
    assert_eq!(answer(&lab, VIRTUAL_V4)?, RESOLVER);
    file.write(&good)?;
    assert_eq!(daemon.ask(&["reload"])?, "nothing has changed\n");
    Ok(())
}

#[test]
fn reload_prints_what_has_changed() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let file = File::new(&lab, &upstreams(&["udp://192.0.2.53"]))?;
    let daemon = file.daemon(&lab, &[])?;

    file.write(&format!(
        "{}deadline = \"4s\"\n[[rule]]\ndestination = \"10.9.9.9\"\nprotocol = \"udp\"\n\
         [[route]]\ndomains = [\"corp.example\"]\nupstreams = [\"udp://192.0.2.54\"]",
        upstreams(&["udp://192.0.2.53", "tcp://192.0.2.53"])
    ))?;
    let told = daemon.ask(&["reload"])?;
    assert_eq!(
        told,
        "dns.upstreams: [\"udp://192.0.2.53\"] → [\"udp://192.0.2.53\",\"tcp://192.0.2.53\"]\n\
         dns.deadline: \"5s\" → \"4s\"\n\
         route added: domains = [\"corp.example\"], upstreams = [\"udp://192.0.2.54\"], via = \"bypass\"\n\
         rule added: destination = \"10.9.9.9\", protocol = \"udp\", service = \"dns\"\n"
    );
    assert_eq!(daemon.ask(&["reload"])?, "nothing has changed\n");

    file.write(&upstreams(&["udp://192.0.2.53"]))?;
    let told: Value = serde_json::from_str(&daemon.ask(&["reload", "--json"])?)?;
    let changes = told["changes"].as_array().context("no changes")?;
    let deadline = json!({"key": "dns.deadline", "before": "4s", "after": "5s"});
    assert!(changes.contains(&deadline), "{told:#}");
    let told: Value = serde_json::from_str(&daemon.ask(&["reload", "--json"])?)?;
    assert_eq!(told, json!({"changes": []}));
    Ok(())
}

#[test]
fn rules_and_virtual_addresses_follow_the_file_and_rules_of_the_command_line_stay() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let addresses = |list: &str| format!("[virtual]\naddresses = [{list}]\n");
    let base = upstreams(&["udp://192.0.2.53"]);
    let file = File::new(&lab, &format!("{base}{}", addresses("\"10.30.30.30\"")))?;
    let daemon = file.daemon(&lab, &[])?;
    let _far_end = Responder::far_end(&lab.peer, VIRTUAL_V4)?;
    daemon.rule_add(&["10.30.30.33"])?;
    answer(&lab, VIRTUAL_V4)?;

    file.write(&format!(
        "{base}{}[[rule]]\ndestination = \"10.30.30.32\"",
        addresses("\"10.30.30.31\"")
    ))?;
    daemon.ask(&["reload"])?;

    for (address, expected) in [
        ("10.30.30.30", Responder::FAR_ANSWER),
        ("10.30.30.31", RESOLVER),
        ("10.30.30.32", RESOLVER),
        ("10.30.30.33", RESOLVER),
    ] {
        assert_eq!(answer(&lab, address.parse()?)?, expected, "{address}");
    }
    file.write(&format!(
        "{base}{}[[rule]]\ndestination = \"10.30.30.33\"\nservice = \"echo\"",
        addresses("\"10.30.30.31\"")
    ))?;
    let told = daemon.ask(&["reload"])?;
    assert!(
        told.contains("rule removed: destination = \"10.30.30.33\", service = \"dns\""),
        "{told}"
    );
    assert_eq!(daemon.rules()?.len(), 2);
    Ok(())
}

#[test]
fn a_rule_that_stays_goes_on_counting() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let base = upstreams(&["udp://192.0.2.53"]);
    let file = File::new(
        &lab,
        &format!("{base}[[rule]]\ndestination = \"10.30.30.31\""),
    )?;
    let daemon = file.daemon(&lab, &[])?;
    answer(&lab, "10.30.30.31".parse()?)?;
    let before = daemon.matched("10.30.30.31")?;

    file.write(&format!(
        "{base}[[rule]]\ndestination = \"10.30.30.32\"\n[[rule]]\ndestination = \"10.30.30.31\""
    ))?;
    daemon.ask(&["reload"])?;

    assert!(before > 0);
    assert_eq!(daemon.matched("10.30.30.31")?, before);
    assert_eq!(daemon.matched("10.30.30.32")?, 0);
    Ok(())
}

#[test]
fn a_reload_that_concerns_no_answer_forgets_none() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let base = upstreams(&["udp://192.0.2.53"]);
    let file = File::new(&lab, &base)?;
    let daemon = file.daemon(&lab, &[])?;
    // The second answer is offered to the kernel, and the third is its own.
    for _ in 0..3 {
        answer(&lab, VIRTUAL_V4)?;
    }
    let asked = lab.resolver.queries()?;
    let kernel_hits = kernel_hits(&daemon)?;

    file.write(&format!(
        "{base}deadline = \"4s\"\n[cache]\nsize = \"8MiB\"\n[tcp]\nidle_timeout = \"20s\"\nmax_connections = 99"
    ))?;
    let told = daemon.ask(&["reload"])?;
    assert_eq!(told.lines().count(), 4, "{told}");

    answer(&lab, VIRTUAL_V4)?;
    assert_eq!(lab.resolver.queries()?, asked);
    assert_eq!(self::kernel_hits(&daemon)?, kernel_hits + 1);
    let cache: Value = serde_json::from_str(&daemon.ask(&["cache", "stats", "--json"])?)?;
    assert!(cache.to_string().contains("8388608"), "{cache:#}");
    Ok(())
}

#[test]
fn interfaces_are_tapped_and_left_as_the_file_says() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let beyond: IpAddr = "10.30.40.40".parse()?;
    lab.client
        .run("ip route add 10.30.40.0/24 via 192.0.2.53")?;
    let _far_end = Responder::far_end(&lab.net, beyond)?;
    let settings = format!(
        "{}[reader]\nroutes = \"off\"\n[virtual]\naddresses = [\"10.30.30.30\", \"10.30.40.40\"]",
        upstreams(&["udp://192.0.2.53"])
    );
    let file = File::new(&lab, &settings)?;
    let daemon = file.daemon(&lab, &[])?;
    assert_eq!(answer(&lab, beyond)?, Responder::FAR_ANSWER);

    file.write_with(&["eth0", "awaited0"], &settings)?;
    daemon.ask(&["reload"])?;
    assert_eq!(daemon.interface_state("eth0")?, "attached");
    assert_eq!(daemon.interface_state("awaited0")?, "waiting");
    for address in [beyond, VIRTUAL_V4] {
        assert_eq!(answer(&lab, address)?, RESOLVER, "{address}");
    }
    lab.client
        .run("ip link add awaited0 type veth peer name awaited1")?;
    daemon.wait_attached("awaited0")?;

    file.write(&settings)?;
    daemon.ask(&["reload"])?;
    assert!(daemon.interface_state("eth0").is_err());
    assert_eq!(answer(&lab, beyond)?, Responder::FAR_ANSWER);
    assert_eq!(answer(&lab, VIRTUAL_V4)?, RESOLVER);
    Ok(())
}

#[test]
fn upstreams_are_asked_with_the_mark_and_by_the_way_that_the_file_says() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    // What carries one of these marks does not get out; the second is that of what does not bypass tunnels.
    for mark in ["0x51", "0x1ce8"] {
        lab.client
            .run(&format!("ip rule add fwmark {mark} table 77"))?;
    }
    lab.client
        .run("ip route add unreachable 192.0.2.53/32 table 77")?;
    let base = upstreams(&["udp://192.0.2.53"]);
    let marked = |mark: &str, via: &str| {
        format!(
            "{base}[bypass]\nmark = {mark}\n[[route]]\ndomains = [\"www.example.test\"]\n\
             upstreams = [\"udp://192.0.2.53\"]\nvia = \"{via}\""
        )
    };
    let file = File::new(&lab, &marked("0x51", "bypass"))?;
    let daemon = file.daemon(&lab, &["--no-cache"])?;
    let is_answered = || answer(&lab, VIRTUAL_V4).is_ok();
    assert!(!is_answered());

    for (mark, via, told, expected) in [
        ("0x52", "bypass", "bypass.mark: 81 → 82\n", true),
        ("0x52", "tunnel", "route ", false),
        ("0x52", "bypass", "route ", true),
        ("0x51", "bypass", "bypass.mark: 82 → 81\n", false),
        ("0x52", "bypass", "bypass.mark: 81 → 82\n", true),
    ] {
        file.write(&marked(mark, via))?;
        let changes = daemon.ask(&["reload"])?;
        assert!(changes.starts_with(told), "{changes}");
        lab::until("the new way is taken", || {
            (is_answered() == expected).then_some(())
        })?;
        let status = daemon.status()?;
        let number = u32::from_str_radix(mark.trim_start_matches("0x"), 16)?;
        assert_eq!(status["bypass_mark"], json!(number), "{status:#}");
    }
    Ok(())
}

#[test]
fn files_under_the_same_name_are_read_again_and_a_broken_one_changes_nothing() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let (old, new) = (Authority::new("Old")?, Authority::new("New")?);
    let _server = TlsResponder::start(
        &lab.net,
        "192.0.2.54:853".parse()?,
        &new.issue(&["dns.example"])?,
        None,
        |_, query| {
            let reply = dns::address_reply(query, Responder::FAR_ANSWER);
            Deed::Answer(reply.into_iter().collect())
        },
    )?;
    let scratch = Scratch::new()?;
    let ca = scratch.write("ca.pem", fs::read(old.file())?)?;
    let url = format!("tls://192.0.2.54?ca={}#dns.example", ca.display());
    let file = File::new(&lab, &upstreams(&[&url]))?;
    let daemon = file.daemon(&lab, &["--no-cache"])?;
    assert!(answer(&lab, VIRTUAL_V4).is_err());
    let error = daemon.status()?["upstreams"][0]["last_error"].to_string();
    assert!(error.contains("does not include"), "{error}");

    scratch.write("ca.pem", "no certificate")?;
    let exit = daemon.try_ask(&["reload"])?;
    assert_eq!(exit.code, Some(2), "{exit:?}");
    for part in ["dns.upstreams", "ca.pem has no certificate in PEM form"] {
        assert!(exit.stderr.contains(part), "{part}: {exit:?}");
    }

    scratch.write("ca.pem", fs::read(new.file())?)?;
    let told = daemon.ask(&["reload"])?;
    assert_eq!(
        told,
        format!("dns.upstreams: {url:?} has other files or secrets\n")
    );
    lab::until("the upstream is trusted", || {
        (answer(&lab, VIRTUAL_V4).ok()? == Responder::FAR_ANSWER).then_some(())
    })?;
    assert_eq!(daemon.ask(&["reload"])?, "nothing has changed\n");
    Ok(())
}

#[test]
fn the_log_follows_another_filter() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let filter = |filter: &str| {
        format!(
            "{}[log]\nfilter = \"{filter}\"",
            upstreams(&["udp://192.0.2.53"])
        )
    };
    let file = File::new(&lab, &filter("info"))?;
    let mut command = lab.client.command(lab::binary()?);
    let control = file.scratch.path("control.sock");
    command
        .arg("run")
        .arg("--config")
        .arg(file.path())
        .arg("--control")
        .arg(control);
    let mut process = Process::spawn("interceptor", command)?;
    process.wait_for_line("ready")?;
    let answered = |text: &str| text.matches("answered").count();

    answer(&lab, VIRTUAL_V4)?;
    assert_eq!(answered(&process.log()), 0);
    file.write(&filter("debug"))?;
    process.signal(Signal::SIGHUP)?;
    process.wait_for_line("reloaded")?;
    lab.dig("@10.30.30.30 other.example.test")?;

    process.wait_for_line("answered")?;
    assert_eq!(process.end(Signal::SIGTERM)?.code(), Some(0));
    Ok(())
}

#[test]
fn a_thousand_reloads_under_load_lose_no_query_and_misjudge_no_packet() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let (first, second) = (Ipv4Addr::new(198, 18, 0, 54), Ipv4Addr::new(198, 18, 0, 55));
    let _upstreams = [
        responder(&lab, "192.0.2.54:53", first)?,
        responder(&lab, "192.0.2.54:5353", second)?,
    ];
    let toggled: [IpAddr; 2] = ["10.30.30.31".parse()?, "10.30.30.32".parse()?];
    let _servers = [
        Responder::far_end(&lab.peer, toggled[0])?,
        Responder::far_end(&lab.peer, toggled[1])?,
    ];
    let plan = |upstreams: &[&str], rule: IpAddr, probed: &str| {
        format!(
            "{}[[rule]]\ndestination = \"{rule}\"\n\
             [[route]]\ndomains = [\"probe.test\"]\nupstreams = [\"udp://{probed}\"]\n",
            self::upstreams(upstreams)
        )
    };
    let one = plan(
        &["udp://192.0.2.53", "tcp://192.0.2.53"],
        toggled[0],
        "192.0.2.54",
    );
    let other = format!(
        "{}[[route]]\ndomains = [\"example.test\"]\nupstreams = [\"udp://203.0.113.53\"]",
        plan(
            &["tcp://192.0.2.53", "udp://192.0.2.53"],
            toggled[1],
            "192.0.2.54:5353",
        )
    );
    let file = File::new(&lab, &one)?;
    let mut daemon = file.daemon(&lab, &["--log", "warn"])?;
    let capture = Capture::start(&lab.peer, lab.tunnel.peer_interface())?;
    let staying = [
        Load::udp(&lab.client, Lab::dns_v4(), 2)?,
        Load::udp(&lab.client, Lab::dns_v6(), 1)?,
        Load::tcp(&lab.client, Lab::dns_v4(), 1)?,
        Load::tcp(&lab.client, Lab::dns_v6(), 1)?,
    ];
    let swapped = [
        Load::udp(&lab.client, SocketAddr::new(toggled[0], 53), 1)?,
        Load::udp(&lab.client, SocketAddr::new(toggled[1], 53), 1)?,
    ];
    let probe = lab.client.udp_to(Lab::dns_v4())?;
    probe.set_read_timeout(Some(lab::patience()))?;

    for round in 0..500 {
        for (text, expected) in [(&other, second), (&one, first)] {
            file.write(text)?;
            reload(&daemon).with_context(|| format!("round {round}"))?;
            daemon.wait_notification("READY=1")?;
            let query = Query::new("www.probe.test", 1);
            for _ in 0..3 {
                probe.send(&query.wire())?;
                let mut buffer = [0; 512];
                let length = lab::receive(&probe, &mut buffer)?;
                let reply = dns::parse(&buffer[..length])?;
                assert_eq!(dns::first_address(&reply), Some(expected), "round {round}");
            }
        }
    }
    for load in &staying {
        load.progress(10)?;
    }

    for load in staying {
        let report = load.stop()?;
        assert_eq!(report.queries(), report.resolver, "{report:?}");
    }
    for load in swapped {
        let report = load.stop()?;
        assert_eq!((report.lost, report.wrong), (0, 0), "{report:?}");
        assert!(report.resolver > 0 && report.far_end > 0, "{report:?}");
    }
    lab.ping(lab::PEER_V4)?;
    capture.wait_for("the ping", |packet| packet.protocol == ICMP)?;
    let strays = capture.matching(|it| it.involves(VIRTUAL_V4) || it.involves(VIRTUAL_V6))?;
    assert_eq!(strays, []);
    Ok(())
}

#[test]
fn reloads_under_load_lose_no_query_of_listeners_and_none_that_is_asked_over_tls_or_https()
-> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let ca = Authority::new("Lab Authority")?;
    let identity = ca.issue(&["dns.lab.test"])?;
    let _server = EncryptedServer::start(ServerSoftware::Unbound, &lab.net, &identity)?;
    let url = |scheme: &str, parameters: &str| {
        let (address, ca) = (EncryptedServer::ADDRESS, ca.file().display());
        format!("{scheme}://{address}?ca={ca}{parameters}#dns.lab.test")
    };
    let (tls, https) = (url("tls", ""), url("https", ""));
    // Other upstreams in another order, and one of the same server that has connections of its own.
    let lists = [
        upstreams(&[&tls]),
        upstreams(&[&https, &url("tls", "&pool=2"), &tls]),
    ];
    let plan = |turn: u16| {
        let upstreams = &lists[usize::from(turn % 2)];
        let record = lab::host_address(turn);
        // A place that was left is free when what came there has been answered.
        let passing = 5301 + turn % 100;
        format!(
            "{upstreams}\
             [[record]]\nname = \"own.test\"\ntype = \"A\"\nvalue = \"{record}\"\n\
             [[listen]]\naddress = \"127.0.0.1:{passing}\"\n\
             [[listen]]\naddress = \"{LISTENER}\"\n"
        )
    };
    let file = File::new(&lab, &plan(0))?;
    // Every query goes to an upstream.
    let daemon = file.daemon(&lab, &["--log", "warn", "--no-cache"])?;
    let outside = Capture::start(&lab.client, "eth0")?;
    let listener = LISTENER.parse()?;
    let loads = [
        Load::udp(&lab.client, Lab::dns_v4(), 2)?,
        Load::tcp(&lab.client, Lab::dns_v4(), 1)?,
        Load::udp(&lab.client, listener, 2)?,
        Load::tcp(&lab.client, listener, 1)?,
    ];
    let probe = lab.client.udp_to(listener)?;
    probe.set_read_timeout(Some(lab::patience()))?;

    for turn in 1..=lab::rounds(1000) as u16 {
        file.write(&plan(turn))?;
        reload(&daemon).with_context(|| format!("turn {turn}"))?;
        probe.send(&Query::new("own.test", 1).wire())?;
        let mut buffer = [0; 512];
        let length = lab::receive(&probe, &mut buffer)?;
        let reply = dns::parse(&buffer[..length])?;
        let expected = Some(lab::host_address(turn));
        assert_eq!(dns::first_address(&reply), expected, "turn {turn}");
    }
    for load in &loads {
        load.progress(10)?;
    }

    for load in loads {
        let report = load.stop()?;
        assert_eq!(report.queries(), report.resolver, "{report:?}");
    }
    lab.ping(lab::RESOLVER_V4)?;
    outside.wait_for("the ping", |packet| packet.protocol == ICMP)?;
    let readable = outside.matching(|packet| packet.involves_port(53))?;
    assert_eq!(readable, []);
    Ok(())
}

/// The daemon's configuration file.
struct File {
    interface: String,
    scratch: Scratch,
}

impl File {
    fn new(lab: &Lab, settings: &str) -> Result<Self> {
        let file = Self {
            interface: lab.tunnel.client_interface().to_owned(),
            scratch: Scratch::new()?,
        };
        file.write(settings)?;
        Ok(file)
    }

    fn daemon(&self, lab: &Lab, arguments: &[&str]) -> Result<Daemon> {
        let path = self.path().display().to_string();
        let mut line = vec!["--config", &path];
        line.extend(arguments);
        let daemon = Daemon::start(&lab.client, &line)?;
        daemon.wait_attached(&self.interface)?;
        Ok(daemon)
    }

    /// `settings`, with the tunnel tapped.
    fn write(&self, settings: &str) -> Result<()> {
        self.write_with(&[], settings)
    }

    /// `settings`, with the tunnel and other interfaces tapped.
    fn write_with(&self, others: &[&str], settings: &str) -> Result<()> {
        let mut interfaces = vec![self.interface.as_str()];
        interfaces.extend(others);
        let mut text = String::new();
        writeln!(text, "[tunnel]\ninterfaces = {interfaces:?}\n{settings}")?;
        self.write_raw(&text)
    }

    fn write_raw(&self, text: &str) -> Result<()> {
        let fresh = self.scratch.write("fresh.toml", text)?;
        Ok(fs::rename(fresh, self.path())?)
    }

    fn path(&self) -> PathBuf {
        self.scratch.path("interceptor.toml")
    }
}

fn upstreams(urls: &[&str]) -> String {
    format!("[dns]\nupstreams = {urls:?}\n")
}

fn responder(lab: &Lab, at: &str, address: Ipv4Addr) -> Result<Responder> {
    Responder::start(&lab.net, at.parse()?, move |query| {
        dns::address_reply(query, address).into_iter().collect()
    })
}

fn answer(lab: &Lab, server: IpAddr) -> Result<Ipv4Addr> {
    let answer = lab.dig(&format!("+short +notcp @{server} www.example.test"))?;
    answer.trim().parse().with_context(|| answer)
}

fn kernel_hits(daemon: &Daemon) -> Result<u64> {
    let status = daemon.status()?;
    let tiers = status["cache"]["tiers"].as_array().context("no tiers")?;
    let kernel = tiers.iter().find(|tier| tier["name"] == "kernel");
    let kernel = kernel.with_context(|| format!("no answers in the kernel: {status:#}"))?;
    kernel["counters"]["hits"].as_u64().context("no hits")
}

/// `interceptor reload` without the process that asks.
fn reload(daemon: &Daemon) -> Result<()> {
    let mut stream = UnixStream::connect(daemon.control())?;
    stream.write_all(b"POST /v1/reload HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    anyhow::ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    Ok(())
}

const ICMP: u8 = 1;

/// Where a listener stays.
const LISTENER: &str = "127.0.0.1:5300";

/// What the lab's resolver says of www.example.test.
const RESOLVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
