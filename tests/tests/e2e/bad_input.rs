//! Bad input: each mistake gets one line that helps, and the right exit code.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use anyhow::Result;
use lab::{Authority, Exit, Namespace, Scratch, interceptor};

#[test]
fn an_unknown_interface_is_an_error_of_check() -> Result<()> {
    let namespace = Namespace::new("bad")?;
    lab::veth(
        lab::VethEnd {
            namespace: &namespace,
            name: "eth0",
            addresses: &[],
        },
        lab::VethEnd {
            namespace: &namespace,
            name: "eth1",
            addresses: &[],
        },
    )?;

    let exit = interceptor(&namespace, &["check", "-i", "nope0"])?;

    assert_ne!(exit.code, Some(0), "{exit:?}");
    let said = format!("{}{}", exit.stdout, exit.stderr);
    for part in ["nope0", "eth0", "eth1"] {
        assert!(said.contains(part), "{part}: {exit:?}");
    }
    Ok(())
}

#[test]
fn a_configuration_without_mistakes_passes_check() -> Result<()> {
    let namespace = Namespace::new("bad")?;

    let exit = interceptor(&namespace, &["check", "--upstream", "udp://192.0.2.53"])?;

    assert!(matches!(exit.code, Some(0)), "{exit:?}");
    assert!(exit.stdout.contains("192.0.2.53"), "{exit:?}");
    Ok(())
}

#[test]
fn check_finds_what_would_stop_run() -> Result<()> {
    let namespace = Namespace::new("bad")?;
    namespace.run("ip link add taken0 type veth peer name taken1")?;
    let scratch = Scratch::new()?;
    let occupied = scratch.write("occupied", "notes")?.display().to_string();
    let script = scratch
        .write("script", "#!/bin/sh\n")?
        .display()
        .to_string();

    let exit = interceptor(
        &namespace,
        &[
            "check",
            "--interface",
            "taken1",
            "--device",
            "taken0",
            "--control",
            &occupied,
            "--bpf-object",
            &script,
        ],
    )?;

    assert_refused(&exit, 1, &["would not work here, for 3 reasons"]);
    for part in [
        "# error: taken0: an interface of that name exists",
        &format!("# error: {occupied} is there and is no socket"),
        &format!("# error: {script} is no BPF object"),
    ] {
        assert!(exit.stdout.contains(part), "{part}: {exit:?}");
    }
    Ok(())
}

#[test]
fn an_upstream_at_an_address_of_the_host_is_a_loop_where_all_of_them_are_listened_at() -> Result<()>
{
    let namespace = Namespace::new("bad")?;
    namespace.run("ip link set lo up")?;
    namespace.run("ip address add 192.0.2.9/32 dev lo")?;

    for (upstream, code) in [("udp://192.0.2.9:5353", 2), ("udp://192.0.2.10:5353", 0)] {
        let listen = ["check", "--listen", "0.0.0.0:5353", "--upstream", upstream];
        let exit = interceptor(&namespace, &listen)?;

        assert_eq!(exit.code, Some(code), "{exit:?}");
        let is_loop = exit.stderr.contains("where this daemon itself listens");
        assert_eq!(is_loop, code == 2, "{exit:?}");
    }
    Ok(())
}

#[test]
fn check_says_how_upstreams_would_be_asked_who_would_be_answered_and_which_certificates_are_old()
-> Result<()> {
    let namespace = Namespace::new("bad")?;
    namespace.run("ip link set lo up")?;
    let authority = Authority::new("Lab Authority")?;
    let (good, old) = (
        authority.issue(&["dns.example"])?,
        authority.issue_expired(&["old.example", "192.0.2.7"])?,
    );
    let pin = format!("sha256/{}", good.pin()?);
    let (ca, old_file) = (authority.file().display(), old.certificate.display());
    let tls = format!("tls://192.0.2.54?pin={pin}&ca={ca}#dns.example");
    let listen = format!(
        "tls://127.0.0.1:8853?cert={old_file}&key={}&allow=127.0.0.0/8",
        old.key.display()
    );

    let exit = interceptor(
        &namespace,
        &[
            "check",
            "--listen",
            &listen,
            "--listen",
            "127.0.0.1:5353",
            "--upstream",
            &tls,
            "--upstream",
            "udp://192.0.2.53",
            "--upstream",
            "h3://dns.example?roots=webpki",
            "--bootstrap",
            "udp://192.0.2.53",
        ],
    )?;

    assert_eq!(exit.code, Some(0), "{exit:?}");
    for line in [
        "over TLS at 192.0.2.54:853, by the host's routes; its certificate must be for dns.example and signed by an \
         authority in",
        "dns.upstreams: where its encrypted upstreams fail, its others are asked in plain text",
        "and have the pinned key",
        "# info: upstream udp://192.0.2.53 would be asked over UDP (TCP where an answer is truncated) at 192.0.2.53:53, \
         by the host's routes, in plain text",
        "over HTTPS (HTTP/3) at the addresses that udp://192.0.2.53 has for dns.example, by the host's routes; its \
         certificate must be for dns.example and signed by one of Mozilla's",
        "# info: tcp://127.0.0.1:5353 would answer everybody",
        &format!(
            "# info: tls://127.0.0.1:8853 would answer 127.0.0.0/8 with the certificate {old_file} for old.example, \
             192.0.2.7, which is valid until 2020-12-31T00:00:00Z"
        ),
        &format!(
            "# warning: tls://127.0.0.1:8853: the certificate {old_file} expired at 2020-12-31T00:00:00Z"
        ),
    ] {
        assert!(exit.stdout.contains(line), "{line}: {}", exit.stdout);
    }
    Ok(())
}

#[test]
fn a_certificate_that_is_not_for_its_key_is_an_error_with_its_line() -> Result<()> {
    let namespace = Namespace::new("bad")?;
    let authority = Authority::new("Lab Authority")?;
    let (one, other) = (
        authority.issue(&["one.example"])?,
        authority.issue(&["b.example"])?,
    );
    let (certificate, key) = (one.certificate.display(), other.key.display());
    let scratch = Scratch::new()?;
    for (text, place) in [
        (
            format!(
                "\n[[listen]]\naddress = \"127.0.0.1\"\ncertificate = \"{certificate}\"\nkey = \"{key}\""
            ),
            ":2:1: listen: the server certificate",
        ),
        (
            format!("[dns]\nupstreams = [\"tls://192.0.2.1?cert={certificate}&key={key}\"]"),
            ":2:14: dns.upstreams: the client certificate",
        ),
    ] {
        let file = scratch.write("bad.toml", text)?.display().to_string();
        for command in ["check", "run"] {
            let exit = interceptor(&namespace, &[command, "-c", &file])?;

            assert_refused(&exit, 2, &[place, "it is not for the key"]);
        }
    }
    Ok(())
}

#[test]
fn check_beside_a_running_daemon_says_what_it_has_taken() -> Result<()> {
    let lab = lab::Lab::client_with_tunnel()?;
    let daemon = lab.daemon(&[])?;
    let control = daemon.control().display().to_string();
    let name = lab.tunnel.client_interface();

    let exit = interceptor(&lab.client, &["check", "-i", name, "--control", &control])?;

    assert_eq!(exit.code, Some(1), "{exit:?}");
    let pid = daemon.pid();
    for part in [
        format!("# error: another interceptor (pid {pid}) answers at {control}"),
        format!("# error: {name}: another interceptor (pid {pid}) taps this interface"),
    ] {
        assert!(exit.stdout.contains(&part), "{part}: {exit:?}");
    }
    Ok(())
}

#[test]
fn check_without_privileges_names_those_that_are_missing() -> Result<()> {
    let namespace = Namespace::new("bad")?;
    let scratch = Scratch::new()?;
    let program = scratch.copy(&lab::binary()?, "interceptor")?;
    if let Some(directory) = program.parent() {
        fs::set_permissions(directory, Permissions::from_mode(0o777))?;
    }
    let mut plain = std::process::Command::new(&program);
    plain
        .args(["check", "--control"])
        .arg(scratch.path("control.sock"));
    let dropped = lab::unprivileged(&plain);
    let mut command = namespace.command(dropped.get_program());
    command.args(dropped.get_args());

    let exit = lab::finish(command)?;

    assert_eq!(exit.code, Some(1), "{exit:?}");
    let part = "# error: privileges are missing: CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON";
    assert!(exit.stdout.contains(part), "{exit:?}");
    Ok(())
}

#[test]
fn check_warns_of_addresses_that_the_host_owns_and_of_upstreams_that_a_rule_covers() -> Result<()> {
    let namespace = Namespace::new("bad")?;
    namespace.run("ip address add 10.30.30.30/32 dev lo")?;
    namespace.run("ip link set lo up")?;

    let exit = interceptor(
        &namespace,
        &[
            "check",
            "--upstream",
            "udp://192.0.2.53",
            "--rule",
            "192.0.2.0/24 udp port 53",
        ],
    )?;

    assert_eq!(exit.code, Some(0), "{exit:?}");
    for part in [
        "# warning: virtual address 10.30.30.30 is one of this host's own",
        "# warning: upstream 192.0.2.53:53 is covered by rule `192.0.2.0/24 udp port 53 -> dns`",
    ] {
        assert!(exit.stdout.contains(part), "{part}: {exit:?}");
    }
    assert!(!exit.stdout.contains("virtual address fd30"), "{exit:?}");
    Ok(())
}

#[test]
fn what_is_no_bpf_object_is_named_once() -> Result<()> {
    let namespace = Namespace::new("bad")?;
    namespace.run("ip link add wg0 type veth peer name wg1")?;
    let scratch = Scratch::new()?;
    let script = scratch
        .write("script", "#!/bin/sh\n")?
        .display()
        .to_string();

    let exit = interceptor(&namespace, &["run", "-i", "wg0", "--bpf-object", &script])?;

    assert_refused(&exit, 1, &[&script]);
    let mut clauses: Vec<&str> = exit.stderr.trim_end().split(": ").collect();
    clauses.sort_unstable();
    let all = clauses.len();
    clauses.dedup();
    assert_eq!(clauses.len(), all, "{exit:?}");
    Ok(())
}

#[test]
fn without_privileges_the_error_names_what_is_missing() -> Result<()> {
    let namespace = Namespace::new("bad")?;
    let scratch = Scratch::new()?;
    // An ordinary user may not be able to reach the checkout.
    let program = scratch.copy(&lab::binary()?, "interceptor")?;
    if let Some(directory) = program.parent() {
        fs::set_permissions(directory, Permissions::from_mode(0o777))?;
    }
    let mut plain = std::process::Command::new(&program);
    plain
        .args(["run", "--upstream", "udp://192.0.2.53", "--control"])
        .arg(scratch.path("control.sock"));
    let dropped = lab::unprivileged(&plain);
    let mut command = namespace.command(dropped.get_program());
    command.args(dropped.get_args());

    let exit = lab::finish(command)?;

    assert_refused(&exit, 1, &[]);
    assert!(
        ["root", "sudo", "CAP_"]
            .iter()
            .any(|hint| exit.stderr.contains(hint)),
        "{exit:?}"
    );
    Ok(())
}

#[test]
fn a_tunnel_on_a_kernel_without_bpf_is_refused() -> Result<()> {
    let namespace = Namespace::new("bad")?;
    for errno in [libc::EPERM, libc::ENOSYS] {
        let scratch = Scratch::new()?;
        let mut command = namespace.command(lab::binary()?);
        command
            .args(["run", "-i", "wg0", "--upstream", "udp://192.0.2.53"])
            .arg("--control")
            .arg(scratch.path("control.sock"));

        let exit = lab::without_bpf(errno, || lab::finish(command))?;

        assert_refused(&exit, 1, &["BPF"]);
        let links = namespace.run("ip -o link show")?;
        assert!(!links.contains("icept"), "{links}");
    }
    Ok(())
}

#[test]
fn without_a_tunnel_a_kernel_without_bpf_does() -> Result<()> {
    let lab = lab::Lab::client_with_tunnel()?;
    for route in ["10.30.30.0/24", "fd30:30:30::/64"] {
        lab.client.run(&format!("ip route del {route}"))?;
    }
    let daemon = lab::without_bpf(libc::ENOSYS, || {
        lab::Daemon::start(
            &lab.client,
            &["--reader", "auto", "--upstream", "udp://192.0.2.53"],
        )
    })?;

    let answer = lab.dig("+short @10.30.30.30 www.example.test")?;

    assert_eq!(answer, "192.0.2.80\n");
    assert!(
        daemon.log().contains("rules have no counters"),
        "{}",
        daemon.log()
    );
    Ok(())
}

#[test]
fn mistakes_in_a_file_name_the_file_and_the_line() -> Result<()> {
    let namespace = Namespace::new("bad")?;
    let scratch = Scratch::new()?;
    for (content, parts) in [
        ("[tunnel\ninterfaces = []\n", &["bad.toml", "1"][..]),
        (
            "[tunnel]\ninterface = [\"wg0\"]\n",
            &["bad.toml", "2", "interface", "interfaces"],
        ),
        (
            "[dns]\nupstreams = [\"ftp://192.0.2.53\"]\n",
            &["bad.toml", "2", "ftp"],
        ),
        (
            "[tcp]\nmax_connections = \"many\"\n",
            &["bad.toml", "2", "max_connections"],
        ),
    ] {
        let file = scratch.write("bad.toml", content)?;
        let file = file.display().to_string();

        let exit = interceptor(&namespace, &["run", "--config", &file])?;

        assert_refused(&exit, 2, parts);
    }
    Ok(())
}

#[test]
fn a_file_that_cannot_be_read_is_named() -> Result<()> {
    let namespace = Namespace::new("bad")?;
    let scratch = Scratch::new()?;
    let missing = scratch.path("missing.toml").display().to_string();
    let directory = scratch.path("").display().to_string();
    let binary = scratch.write("binary.toml", [0xff, 0xfe, 0x00])?;
    let binary = binary.display().to_string();

    for file in [&missing, &directory, &binary] {
        let exit = interceptor(&namespace, &["run", "--config", file])?;
        assert_refused(&exit, 2, &[file.trim_end_matches('/')]);
    }
    Ok(())
}

#[test]
fn flags_that_make_no_sense_are_named() -> Result<()> {
    let namespace = Namespace::new("bad")?;
    for (arguments, parts) in [
        (
            &["run", "--upstream", "dns.example"][..],
            &["dns.example", "udp://"][..],
        ),
        (
            &["run", "--upstream", "udp://resolver.example"],
            &["resolver.example"],
        ),
        (&["run", "--upstream", "udp://192.0.2.53:0"], &["0"]),
        (
            &["run", "--upstream", "udp://[::ffff:192.0.2.53]"],
            &["udp://192.0.2.53"],
        ),
        (&["run", "--log", "inof"], &["--log", "inof"]),
        (&["run", "--address", "127.0.0.1"], &["127.0.0.1"]),
        (&["run", "--address", "224.0.0.1"], &["224.0.0.1"]),
        (
            &["run", "--attempt-timeout", "9s", "--deadline", "1s"],
            &["9s", "1s"],
        ),
        (
            &["run", "--rule", "10.30.30.30 udp port 53 -> echo"],
            &["echo", "ICMP"],
        ),
        (
            &[
                "run",
                "--rule",
                "10.30.40.0/24 -> dns",
                "--rule",
                "10.30.40.0/24 icmp -> echo",
                "--rule",
                "10.30.40.0/24 icmp -> dns",
            ],
            &["10.30.40.0/24", "icmp"],
        ),
        (&["run", "--rule", "any -> dns"], &["any", "port"]),
        (&["run", "--tcp-connections", "0"], &["max_connections"]),
        (
            &["run", "--rule", "10.30.30.30/24 -> dns"],
            &["10.30.30.0/24"],
        ),
    ] {
        let exit = interceptor(&namespace, arguments)?;
        assert_refused(&exit, 2, parts);
    }
    Ok(())
}

#[test]
fn unknown_flags_and_commands_are_usage_errors() -> Result<()> {
    let namespace = Namespace::new("bad")?;
    for arguments in [&["run", "--interfaces", "wg0"][..], &["runn"], &[]] {
        let exit = interceptor(&namespace, arguments)?;
        assert_eq!(exit.code, Some(2), "{arguments:?}: {exit:?}");
        assert!(!exit.stderr.is_empty());
    }
    Ok(())
}

#[test]
fn an_unknown_variable_of_the_environment_is_named_with_its_nearest() -> Result<()> {
    let namespace = Namespace::new("bad")?;
    let mut command = namespace.command(lab::binary()?);
    command
        .arg("check")
        .env("INTERCEPTOR_DNS_UPSTREAM", "udp://192.0.2.53");

    let exit = lab::finish(command)?;

    assert_refused(
        &exit,
        2,
        &["INTERCEPTOR_DNS_UPSTREAM", "INTERCEPTOR_DNS_UPSTREAMS"],
    );
    Ok(())
}

#[test]
fn a_device_name_that_is_taken_is_refused() -> Result<()> {
    let namespace = Namespace::new("bad")?;
    namespace.run("ip link add taken0 type veth peer name taken1")?;

    let exit = interceptor(&namespace, &["run", "--device", "taken0"])?;

    assert_refused(&exit, 1, &["taken0", "--device"]);
    Ok(())
}

#[test]
fn a_control_socket_that_cannot_be_made_is_named() -> Result<()> {
    let namespace = Namespace::new("bad")?;
    let scratch = Scratch::new()?;
    let file = scratch.write("file", "not a directory")?;
    let path = file.join("control.sock").display().to_string();

    let exit = interceptor(&namespace, &["run", "--control", &path])?;

    assert_refused(&exit, 1, &["control.sock"]);
    Ok(())
}

#[test]
fn a_stale_control_socket_is_replaced() -> Result<()> {
    let namespace = Arc::new(Namespace::new("stale")?);
    let mut daemon = lab::Daemon::start(&namespace, &["--upstream", "udp://192.0.2.53"])?;
    daemon.kill()?;
    assert!(daemon.control().exists(), "kill -9 leaves the socket");

    daemon.start_again()?;

    assert!(daemon.status()?["version"].is_string());
    Ok(())
}

#[test]
fn clients_say_that_no_daemon_answers() -> Result<()> {
    let namespace = Namespace::new("bad")?;
    let scratch = Scratch::new()?;
    let control = scratch.path("nobody.sock").display().to_string();
    for arguments in [
        &["status"][..],
        &["rule", "list"],
        &["rule", "add", "10.30.30.30"],
        &["rule", "remove", "1"],
    ] {
        let mut line = arguments.to_vec();
        line.extend(["--control", &control]);
        let exit = interceptor(&namespace, &line)?;
        assert_refused(&exit, 1, &["nobody.sock", "interceptor run"]);
    }
    Ok(())
}

/// One line, beginning with the program's name, that contains all of `parts`; and exit code `code`.
fn assert_refused(exit: &Exit, code: i32, parts: &[&str]) {
    assert_eq!(exit.code, Some(code), "{exit:?}");
    let message = exit.stderr.trim_end();
    assert!(message.starts_with("interceptor: "), "{exit:?}");
    assert_eq!(message.lines().count(), 1, "{exit:?}");
    for part in parts {
        assert!(message.contains(part), "{part}: {exit:?}");
    }
}
