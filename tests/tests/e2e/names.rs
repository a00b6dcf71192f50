//! Names that the daemon answers by itself: records, hosts files and special-use names.

use std::fs;

use anyhow::Result;
use lab::{Daemon, Lab, Namespace, Scratch, interceptor, until};

const FILE: &str = r#"
[names]
zones = ["home.lan"]

[[record]]
name = "nas.home.lan"
type = "A"
value = ["192.0.2.201", "192.0.2.202"]
ttl = "10min"

[[record]]
name = "nas.home.lan"
type = "AAAA"
value = "2001:db8::201"

[[record]]
name = "home.lan"
type = "MX"
value = "10 nas.home.lan"

[[record]]
name = "_http._tcp.home.lan"
type = "SRV"
value = "0 5 8080 nas.home.lan"

[[record]]
name = "text.home.lan"
type = "TXT"
value = '"two words" more'

[[record]]
name = "*.apps.home.lan"
type = "CNAME"
value = "nas.home.lan"

[[record]]
name = "www.home.lan"
type = "CNAME"
value = "alias.example.test"

[[record]]
name = "gone.home.lan"
type = "CNAME"
value = "missing.example.test"
"#;

#[test]
fn every_kind_of_record_is_answered_to_dig_and_kdig_over_udp_and_tcp() -> Result<()> {
    let stage = Stage::start()?;
    let before = stage.lab.resolver.queries()?;

    for (question, answer) in [
        ("nas.home.lan A", "192.0.2.201\n192.0.2.202\n"),
        ("nas.home.lan AAAA", "2001:db8::201\n"),
        ("home.lan MX", "10 nas.home.lan.\n"),
        ("_http._tcp.home.lan SRV", "0 5 8080 nas.home.lan.\n"),
        ("text.home.lan TXT", "\"two words\" \"more\"\n"),
        (
            "x.apps.home.lan A",
            "nas.home.lan.\n192.0.2.201\n192.0.2.202\n",
        ),
        ("201.2.0.192.in-addr.arpa PTR", "nas.home.lan.\n"),
    ] {
        for server in ["10.30.30.30", "fd30:30:30::30"] {
            for transport in ["+notcp", "+tcp"] {
                let arguments = format!("+short {transport} @{server} {question}");
                assert_eq!(stage.lab.dig(&arguments)?, answer, "{arguments}");
            }
        }
        let kdig = stage.lab.kdig(&format!("+short @10.30.30.30 {question}"))?;
        assert_eq!(kdig, answer, "{question}");
    }

    assert_eq!(stage.lab.resolver.queries()? - before, 0);
    Ok(())
}

#[test]
fn answers_are_authoritative_and_tell_nodata_from_nxdomain() -> Result<()> {
    let stage = Stage::start()?;

    let reply = stage.lab.dig("@10.30.30.30 nAs.home.lan")?;
    assert!(reply.contains("flags: qr aa rd ra;"), "{reply}");
    assert!(reply.contains("nAs.home.lan.\t\t600"), "{reply}");

    let no_data = stage.lab.dig("@10.30.30.30 nas.home.lan TXT")?;
    let missing = stage.lab.dig("@10.30.30.30 missing.home.lan")?;
    let above = stage.lab.dig("@10.30.30.30 apps.home.lan")?;
    for (reply, status) in [
        (&no_data, "NOERROR"),
        (&missing, "NXDOMAIN"),
        (&above, "NOERROR"),
    ] {
        assert!(reply.contains(&format!("status: {status}")), "{reply}");
        assert!(reply.contains("ANSWER: 0, AUTHORITY: 1"), "{reply}");
        assert!(reply.contains("home.lan.\t\t300\tIN\tSOA"), "{reply}");
    }
    Ok(())
}

#[test]
fn an_alias_to_a_name_of_the_internet_comes_with_what_the_upstream_says() -> Result<()> {
    let stage = Stage::start()?;
    let before = stage.lab.resolver.queries()?;

    for transport in ["+notcp", "+tcp", "+noedns"] {
        let found = stage
            .lab
            .dig(&format!("+short {transport} @10.30.30.30 www.home.lan"))?;
        assert_eq!(
            found, "alias.example.test.\nwww.example.test.\n192.0.2.80\n",
            "{transport}"
        );
    }
    assert_eq!(stage.lab.resolver.queries()? - before, 1);

    let gone = stage.lab.dig("@10.30.30.30 gone.home.lan")?;
    assert!(gone.contains("status: NXDOMAIN"), "{gone}");
    assert!(gone.contains("missing.example.test."), "{gone}");
    assert!(gone.contains("SOA"), "{gone}");
    Ok(())
}

#[test]
fn special_names_are_answered_here_unless_that_is_switched_off() -> Result<()> {
    let stage = Stage::start()?;
    let before = stage.lab.resolver.queries()?;

    for (question, answer) in [
        ("localhost A", "127.0.0.1\n"),
        ("x.localhost AAAA", "::1\n"),
        ("-x 127.0.0.1", "localhost.\n"),
    ] {
        let found = stage.lab.dig(&format!("+short @10.30.30.30 {question}"))?;
        assert_eq!(found, answer, "{question}");
    }
    for question in ["x.invalid", "-x 192.168.1.1", "hidden.onion", "x.home.arpa"] {
        let reply = stage.lab.dig(&format!("@10.30.30.30 {question}"))?;
        assert!(reply.contains("status: NXDOMAIN"), "{question}: {reply}");
        assert!(reply.contains("nobody.invalid."), "{question}: {reply}");
    }
    assert_eq!(stage.lab.resolver.queries()? - before, 0);
    drop(stage);

    let scratch = Scratch::new()?;
    let file = scratch.write("x.toml", "[names]\nspecial = false\n")?;
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&["--config", &file.display().to_string()])?;
    let before = lab.resolver.queries()?;
    lab.dig("@10.30.30.30 x.invalid")?;
    assert_eq!(lab.resolver.queries()? - before, 1);
    Ok(())
}

#[test]
fn a_hosts_file_is_followed_and_takes_the_place_of_what_is_remembered() -> Result<()> {
    let scratch = Scratch::new()?;
    let hosts = scratch.write("hosts", "192.0.2.211 printer printer.lan\n")?;
    let path = hosts.display().to_string();
    let lab = Lab::client_with_tunnel()?;
    let mut daemon = lab.daemon(&["--hosts", &path])?;
    let address = |name: &str| lab.dig(&format!("+short @10.30.30.30 {name}"));
    assert_eq!(address("printer.lan")?, "192.0.2.211\n");
    assert_eq!(lab.dig("+short @10.30.30.30 -x 192.0.2.211")?, "printer.\n");
    // Often enough that the kernel has it.
    for _ in 0..4 {
        assert_eq!(address("www.example.test")?, "192.0.2.80\n");
    }

    fs::write(
        &hosts,
        "192.0.2.212 printer.lan\n192.0.2.213 www.example.test\n",
    )?;
    until("the hosts file is read again", || {
        (address("printer.lan").ok()? == "192.0.2.212\n").then_some(())
    })?;
    assert_eq!(address("www.example.test")?, "192.0.2.213\n");

    fs::write(&hosts, "no address\n")?;
    daemon.wait_log("`no` is no address")?;
    assert_eq!(address("printer.lan")?, "192.0.2.212\n");

    fs::write(&hosts, "192.0.2.214 printer.lan\n")?;
    until("the mended hosts file is read", || {
        (address("printer.lan").ok()? == "192.0.2.214\n").then_some(())
    })?;
    assert_eq!(address("www.example.test")?, "192.0.2.80\n");

    let status = daemon.status()?;
    assert_eq!(status["names"]["hosts"][0], path.as_str());
    assert_eq!(status["names"]["names"], 2);
    assert!(status["names"]["answered"].as_u64() > Some(5));
    Ok(())
}

#[test]
fn records_are_given_on_the_command_line_and_printed_by_check() -> Result<()> {
    let namespace = Namespace::new("names")?;
    let record = ["check", "--record", "nas.lan=192.0.2.5"];

    let exit = interceptor(&namespace, &record)?;

    assert!(matches!(exit.code, Some(0)), "{exit:?}");
    let printed =
        "[[record]]\nname = \"nas.lan.\"\ntype = \"A\"\nvalue = \"192.0.2.5\"\nptr = true\n";
    assert!(exit.stdout.contains(printed), "{exit:?}");
    for (record, part) in [
        ("nas.lan", "is no record; write NAME=ADDRESS"),
        ("nas.lan=192.0.2.500", "is no record"),
        ("nas.lan SOA x", "is no type"),
        ("a..b A 192.0.2.1", "is no domain name"),
    ] {
        let exit = interceptor(&namespace, &["check", "--record", record])?;
        assert!(matches!(exit.code, Some(2)), "{exit:?}");
        assert_eq!(exit.stderr.lines().count(), 1, "{exit:?}");
        assert!(exit.stderr.contains("--record: record: "), "{exit:?}");
        assert!(exit.stderr.contains(part), "{exit:?}");
    }
    let exit = interceptor(&namespace, &["run", "--hosts", "/nowhere/hosts"])?;
    assert!(matches!(exit.code, Some(2)), "{exit:?}");
    assert!(exit.stderr.contains("/nowhere/hosts"), "{exit:?}");
    Ok(())
}

/// A daemon with the records of `FILE`.
struct Stage {
    lab: Lab,
    _daemon: Daemon,
    _scratch: Scratch,
}

impl Stage {
    fn start() -> Result<Self> {
        let scratch = Scratch::new()?;
        let file = scratch.write("interceptor.toml", FILE)?;
        let lab = Lab::client_with_tunnel()?;
        let daemon = lab.daemon(&["--config", &file.display().to_string()])?;
        Ok(Self {
            lab,
            _daemon: daemon,
            _scratch: scratch,
        })
    }
}
