//! Which reader it is, on kernels that lack one of them.

use anyhow::Result;
use lab::{Daemon, Exit, Lab, Namespace, Scratch, Snapshot};

#[test]
fn af_xdp_that_is_asked_for_and_not_to_be_had_is_refused_with_the_reason() -> Result<()> {
    let namespace = Namespace::new("readers")?;
    let before = Snapshot::of(&namespace)?;

    let without_sockets = lab::without_af_xdp(|| run(&namespace, "af-xdp"))?;
    let without_namespaces = lab::without_namespaces(|| run(&namespace, "af-xdp"))?;
    let without_bpf = lab::without_bpf(libc::EPERM, || run(&namespace, "af-xdp"))?;

    assert_refused(&without_sockets, &["AF_XDP socket", "CONFIG_XDP_SOCKETS"]);
    assert_refused(&without_namespaces, &["namespace", "CAP_SYS_ADMIN"]);
    assert_refused(&without_bpf, &["BPF"]);
    let left = Snapshot::of(&namespace)?.changes_since(&before);
    assert!(left.is_empty(), "{left}");
    Ok(())
}

#[test]
fn tun_that_is_asked_for_and_not_to_be_had_is_refused_with_the_reason() -> Result<()> {
    let namespace = Namespace::new("readers")?;

    let exit = lab::without_tun(|| run(&namespace, "tun"))?;

    assert_refused(&exit, &["/dev/net/tun"]);
    Ok(())
}

#[test]
fn where_af_xdp_is_not_to_be_had_the_automatic_choice_is_tun() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;

    let (daemon, refused) = lab::without_af_xdp(|| {
        let refused = lab::interceptor(&lab.client, &["check", "--reader", "af-xdp"])?;
        Ok((automatic(&lab)?, refused))
    })?;

    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stdout.contains("no af-xdp reader here"),
        "{refused:?}"
    );
    assert_eq!(daemon.status()?["reader"]["kind"], "tun");
    assert_answered(&lab)
}

#[test]
fn where_tun_is_not_to_be_had_the_automatic_choice_is_af_xdp_and_says_so() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;

    let daemon = lab::without_tun(|| automatic(&lab))?;

    assert_eq!(daemon.status()?["reader"]["kind"], "af-xdp");
    let log = daemon.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert!(
        told[0].contains("no tun reader here, taking af-xdp"),
        "{log}"
    );
    assert_answered(&lab)
}

#[test]
fn check_tells_whether_the_reader_is_to_be_had() -> Result<()> {
    let namespace = Namespace::new("readers")?;

    let there = lab::interceptor(&namespace, &["check", "--reader", "af-xdp"])?;
    let missing =
        lab::without_af_xdp(|| lab::interceptor(&namespace, &["check", "--reader", "af-xdp"]))?;

    assert!(!there.stdout.contains("reader here"), "{there:?}");
    assert_eq!(missing.code, Some(1), "{missing:?}");
    let part = "# error: no af-xdp reader here (`--reader auto` takes another): cannot open an AF_XDP socket";
    assert!(missing.stdout.contains(part), "{missing:?}");
    let links = namespace.run("ip -o link show")?;
    assert_eq!(links.lines().count(), 1, "{links}");
    Ok(())
}

#[test]
fn check_tells_that_no_tun_device_can_be_made_where_only_making_it_is_refused() -> Result<()> {
    let namespace = Namespace::new("readers")?;
    let check = |reader| lab::interceptor(&namespace, &["check", "--reader", reader]);

    let there = check("tun")?;
    let (missing, automatic) = lab::without_tun(|| Ok((check("tun")?, check("auto")?)))?;

    assert!(!there.stdout.contains("/dev/net/tun"), "{there:?}");
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(missing.stdout.contains("/dev/net/tun"), "{missing:?}");
    let part = "no tun reader here, af-xdp would be taken: ";
    assert!(automatic.stdout.contains(part), "{automatic:?}");
    let links = namespace.run("ip -o link show")?;
    assert_eq!(links.lines().count(), 1, "{links}");
    Ok(())
}

#[test]
fn a_reader_that_does_not_exist_is_a_usage_error() -> Result<()> {
    let namespace = Namespace::new("readers")?;

    let exit = run(&namespace, "pcap")?;

    assert_eq!(exit.code, Some(2), "{exit:?}");
    assert!(exit.stderr.contains("af-xdp"), "{exit:?}");
    Ok(())
}

#[test]
fn busy_polling_answers_too() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let _daemon = lab.daemon(&["--reader", "af-xdp", "--busy-poll", "200us"])?;

    for _ in 0..20 {
        assert_answered(&lab)?;
    }
    Ok(())
}

fn run(namespace: &Namespace, reader: &str) -> Result<Exit> {
    let scratch = Scratch::new()?;
    let mut command = namespace.command(lab::binary()?);
    command
        .args(["run", "--upstream", "udp://192.0.2.53", "--reader", reader])
        .arg("--control")
        .arg(scratch.path("control.sock"));
    lab::finish(command)
}

fn automatic(lab: &Lab) -> Result<Daemon> {
    lab.daemon(&["--reader", "auto"])
}

fn assert_answered(lab: &Lab) -> Result<()> {
    for transport in ["+notcp", "+tcp"] {
        let answer = lab.dig(&format!("+short {transport} @10.30.30.30 www.example.test"))?;
        assert_eq!(answer, "192.0.2.80\n");
    }
    Ok(())
}

fn assert_refused(exit: &Exit, parts: &[&str]) {
    assert_eq!(exit.code, Some(1), "{exit:?}");
    assert_eq!(exit.stderr.trim_end().lines().count(), 1, "{exit:?}");
    for part in parts {
        assert!(exit.stderr.contains(part), "{part}: {exit:?}");
    }
}
