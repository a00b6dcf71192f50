//! What machines share: one learns, the others give; and a store that is away, slow, full, wrong or hostile harms nobody.

use std::fs::{self, Permissions};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use lab::dns::{self, ResponseCode};
use lab::{
    Authority, Daemon, Lab, Namespace, Redis, Responder, Scratch, Sentinel, VethEnd, interceptor,
    receive, until, veth,
};
use serde_json::Value;

/// The store's and the upstream's address, on the network that all machines are connected to.
const STORE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 53));

/// Time enough for a store on a machine that has too much to do.
const BUDGET: &str = "budget = \"4s\"\n";

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

#[test]
fn a_name_resolved_by_one_machine_is_served_by_the_other_without_an_upstream_query() -> Result<()> {
    let fleet = Fleet::new()?;
    let _redis = fleet.store(&[])?;
    let upstream = fleet.upstream()?;
    let (one, other) = (
        fleet.machine("one", BUDGET)?,
        fleet.machine("other", BUDGET)?,
    );
    let first = one.dig("www.example.test")?;
    assert!(first.contains("198.18.0.1"), "{first}");
    one.wait_counter("written", 1)?;
    assert_eq!(upstream.seen(), 1);

    let second = other.dig("wWw.eXample.test")?;

    assert!(second.contains("198.18.0.1"), "{second}");
    assert!(second.contains(";wWw.eXample.test."), "{second}");
    assert_eq!(upstream.seen(), 1);
    assert_eq!(other.counter("hits")?, 1);
    let ttl = |reply: &str| -> Option<u32> {
        let answer = reply.lines().find(|line| line.contains("198.18.0.1"))?;
        answer.split_whitespace().nth(1)?.parse().ok()
    };
    assert!(ttl(&second) <= ttl(&first), "{first}\n{second}");
    let found = other.daemon.ask(&["cache", "lookup", "www.example.test"])?;
    assert!(
        found.contains("in memory") && found.contains("in shared"),
        "{found}"
    );
    let stats = other.daemon.ask(&["cache", "stats"])?;
    assert!(
        stats.contains("shared is redis://192.0.2.53:6379: connected"),
        "{stats}"
    );
    assert!(other.daemon.ask(&["status"])?.contains("shared is redis"));
    Ok(())
}

#[test]
fn names_that_do_not_exist_are_shared_and_failures_are_not() -> Result<()> {
    let fleet = Fleet::new()?;
    let _redis = fleet.store(&[])?;
    let upstream = Responder::start(&fleet.net, (STORE, 53).into(), |query| {
        let name = dns::parse(query).map(|query| dns::question_name(&query));
        let reply = match name {
            Ok(name) if name.starts_with("broken") => {
                dns::error_reply(query, ResponseCode::ServFail)
            }
            _ => dns::no_such_name(query, 60),
        };
        reply.into_iter().collect()
    })?;
    let (one, other) = (
        fleet.machine("one", BUDGET)?,
        fleet.machine("other", BUDGET)?,
    );
    assert!(one.dig("broken.example.test")?.contains("SERVFAIL"));
    assert!(one.dig("missing.example.test")?.contains("NXDOMAIN"));
    one.wait_counter("written", 1)?;
    let before = upstream.seen();

    let missing = other.dig("missing.example.test")?;
    assert!(
        missing.contains("NXDOMAIN") && missing.contains("SOA"),
        "{missing}"
    );
    assert_eq!(upstream.seen(), before);
    assert!(other.dig("broken.example.test")?.contains("SERVFAIL"));
    assert!(upstream.seen() > before);
    assert_eq!(one.counter("written")?, 1);
    Ok(())
}

#[test]
fn a_flush_on_one_machine_empties_both() -> Result<()> {
    let fleet = Fleet::new()?;
    let _redis = fleet.store(&[])?;
    let upstream = fleet.upstream()?;
    let (one, other) = (
        fleet.machine("one", BUDGET)?,
        fleet.machine("other", BUDGET)?,
    );
    for (flush, is_kept) in [
        (&["--all"][..], false),
        (&["--suffix", "example.test"][..], true),
        (&["www.example.test"][..], true),
    ] {
        for machine in [&one, &other] {
            machine.dig("www.example.test")?;
            machine.dig("www.example.net")?;
        }
        let (received, before) = (other.counter("flushes_received")?, upstream.seen());

        let flush = [&["cache", "flush"], flush].concat();
        one.daemon.ask(&flush)?;
        other.wait_counter("flushes_received", received + 1)?;

        other.dig("www.example.test")?;
        assert_eq!(upstream.seen(), before + 1, "{flush:?}");
        let kept = other.daemon.ask(&["cache", "lookup", "www.example.net"])?;
        assert_eq!(kept.contains("in memory"), is_kept, "{flush:?}: {kept}");
    }
    Ok(())
}

#[test]
fn a_flush_elsewhere_reaches_the_answers_in_the_kernel() -> Result<()> {
    let lab = Lab::client_with_tunnel()?;
    let fleet = Fleet::around(&lab.net)?;
    let _redis = fleet.store(&[])?;
    let settings = fleet.settings(BUDGET)?;
    let daemon = lab.daemon(&["-c", &settings.display().to_string()])?;
    let tunnelled = Machine {
        namespace: Arc::clone(&lab.client),
        gateway: String::new(),
        daemon,
    };
    tunnelled.wait_connected()?;
    let other = fleet.machine("other", BUDGET)?;
    let kernel_hits = || -> Result<u64> {
        let stats = tunnelled.stats()?;
        stats["tiers"][1]["counters"]["hits"]
            .as_u64()
            .context("the kernel counts no hits")
    };
    until("the kernel answers", || {
        tunnelled.dig("www.example.test").ok()?;
        (kernel_hits().ok()? > 0).then_some(())
    })?;
    let before = lab.resolver.queries()?;

    other.daemon.ask(&["cache", "flush", "--all"])?;
    tunnelled.wait_counter("flushes_received", 1)?;
    let hits = kernel_hits()?;
    tunnelled.dig("www.example.test")?;

    assert_eq!(lab.resolver.queries()?, before + 1);
    assert_eq!(kernel_hits()?, hits);
    Ok(())
}

#[test]
fn a_machine_that_missed_a_flush_forgets_everything_when_it_is_back() -> Result<()> {
    let fleet = Fleet::new()?;
    let _redis = fleet.store(&[])?;
    let upstream = fleet.upstream()?;
    let (one, other) = (
        fleet.machine("one", BUDGET)?,
        fleet.machine("other", BUDGET)?,
    );
    one.dig("www.example.test")?;
    one.wait_counter("written", 1)?;
    other.dig("www.example.test")?;
    other.namespace.run("ip link set eth0 down")?;
    other.wait_state("left alone")?;

    one.daemon.ask(&["cache", "flush", "--all"])?;
    one.wait_counter("flushes_sent", 1)?;
    let still = other.dig("www.example.test")?;
    assert!(still.contains("198.18.0.1"), "{still}");
    other.namespace.run("ip link set eth0 up")?;
    other.restore_route()?;
    other.wait_connected()?;

    other.wait_counter("resynchronized", 1)?;
    let before = upstream.seen();
    other.dig("www.example.test")?;
    assert_eq!(upstream.seen(), before + 1);
    Ok(())
}

#[test]
fn a_flush_while_the_store_is_away_is_told_when_it_is_back() -> Result<()> {
    let fleet = Fleet::new()?;
    let mut redis = fleet.store(&[])?;
    let _upstream = fleet.upstream()?;
    let (one, other) = (
        fleet.machine("one", BUDGET)?,
        fleet.machine("other", BUDGET)?,
    );
    other.dig("www.example.test")?;
    redis.stop();
    one.wait_state("left alone")?;
    one.daemon.ask(&["cache", "flush", "www.example.test"])?;

    redis.restart()?;
    one.wait_connected()?;
    other.wait_connected()?;

    until("the other has forgotten", || {
        let found = other
            .daemon
            .ask(&["cache", "lookup", "www.example.test"])
            .ok()?;
        found.starts_with("nothing").then_some(())
    })
}

#[test]
fn a_store_that_is_killed_and_restarted_under_load_costs_no_query() -> Result<()> {
    let fleet = Fleet::new()?;
    let mut redis = fleet.store(&[])?;
    let _upstream = fleet.upstream()?;
    let machine = fleet.machine("one", "")?;
    let load = Names::start(&machine, 4)?;

    for _ in 0..3 {
        load.progress(100)?;
        redis.stop();
        load.progress(100)?;
        redis.restart()?;
        machine.wait_connected()?;
    }
    load.progress(100)?;

    assert_eq!(load.stop()?, Vec::<String>::new());
    let log = machine.daemon.log();
    assert!(log.contains("doing without it until it is back"), "{log}");
    assert!(
        log.contains("shared cache redis://192.0.2.53:6379: back"),
        "{log}"
    );
    Ok(())
}

#[test]
fn a_store_that_hangs_is_left_alone_and_taken_up_again() -> Result<()> {
    let fleet = Fleet::new()?;
    let redis = fleet.store(&[])?;
    let _upstream = fleet.upstream()?;
    let machine = fleet.machine("one", "")?;
    redis.freeze()?;

    let load = Names::start(&machine, 4)?;
    machine.wait_state("left alone")?;
    load.progress(200)?;
    redis.thaw()?;
    machine.wait_connected()?;
    load.progress(100)?;

    assert_eq!(load.stop()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_store_that_answers_late_costs_no_query() -> Result<()> {
    let fleet = Fleet::new()?;
    let redis = fleet.store(&[])?;
    let _upstream = fleet.upstream()?;
    let machine = fleet.machine("one", "")?;
    let load = Names::start(&machine, 4)?;

    for _ in 0..20 {
        redis.freeze()?;
        // Longer than a query waits for the store, and shorter than what looks like a dead connection.
        thread::sleep(Duration::from_millis(60));
        redis.thaw()?;
        load.progress(20)?;
    }

    assert_eq!(load.stop()?, Vec::<String>::new());
    let missed = machine.counter("timeouts")? + machine.counter("skipped")?;
    assert!(missed > 0, "{:#}", machine.tier()?);
    machine.wait_connected()
}

#[test]
fn a_store_that_is_away_at_the_start_is_waited_for_by_nobody() -> Result<()> {
    let fleet = Fleet::new()?;
    let _upstream = fleet.upstream()?;
    let mut machine = fleet.launch("one", BUDGET)?;
    machine
        .daemon
        .wait_log("doing without it until it is back")?;
    assert!(machine.dig("www.example.test")?.contains("198.18.0.1"));

    let _redis = fleet.store(&[])?;
    machine.wait_connected()?;
    machine.dig("www2.example.test")?;
    machine.wait_counter("written", 1)?;
    Ok(())
}

#[test]
fn rubbish_in_the_store_is_refused_and_the_right_answer_given() -> Result<()> {
    let fleet = Fleet::new()?;
    let redis = fleet.store(&[])?;
    let upstream = fleet.upstream()?;
    let (one, other) = (
        fleet.machine("one", BUDGET)?,
        fleet.machine("other", BUDGET)?,
    );
    let lua = |name: &str, script: &str| {
        let length = name.len();
        let name = format!("\\{length:03}{name}\\007example\\004test\\000");
        let key = format!("interceptor:answer:{name}\\000\\001\\000\\001\\000");
        redis.ask(&["EVAL", &format!("local k=\"{key}\" {script}"), "0"])
    };
    for (number, rubbish) in [
        "redis.call('SET', k, 'rubbish', 'PX', 60000)",
        "redis.call('SET', k, string.rep('x', 1000000), 'PX', 60000)",
        "redis.call('PERSIST', k)",
        "redis.call('PEXPIRE', k, 999999999)",
        "redis.call('DEL', k) redis.call('LPUSH', k, 'rubbish')",
        "redis.call('DEL', k) redis.call('HSET', k, 'rub', 'bish')",
        // Somebody else's answer under the name of ours.
        "redis.call('SET', k, redis.call('GET', (string.gsub(k, 'n6', 'n0'))), 'PX', 5000)",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("n{number}");
        one.dig(&format!("{name}.example.test"))?;
        one.wait_counter("written", number as u64 + 1)?;
        assert_eq!(lua(&name, "return redis.call('EXISTS', k)")?, "1");
        lua(&name, rubbish)?;
        let before = upstream.seen();

        let reply = other.dig(&format!("{name}.example.test"))?;

        assert!(reply.contains("198.18.0.1"), "{rubbish}: {reply}");
        assert_eq!(upstream.seen(), before + 1, "{rubbish}");
        assert_eq!(other.counter("refused")?, number as u64 + 1, "{rubbish}");
        other.wait_counter("written", number as u64 + 1)?;
        let mended = lua(&name, "return redis.call('TYPE', k)['ok']")?;
        assert_eq!(mended, "string", "{rubbish}");
    }
    let refused = other.counter("refused")?;

    // Rubbish where flushes are told, and where the epoch is.
    redis.ask(&["PUBLISH", "interceptor:flush", "rubbish"])?;
    other.wait_counter("refused", refused + 1)?;
    redis.ask(&["DEL", "interceptor:epoch"])?;
    redis.ask(&["LPUSH", "interceptor:epoch", "rubbish"])?;
    one.daemon.ask(&["cache", "flush", "--all"])?;
    other.wait_counter("flushes_received", 1)?;
    assert!(
        redis
            .ask(&["GET", "interceptor:epoch"])?
            .parse::<u64>()
            .is_ok()
    );
    Ok(())
}

#[test]
fn a_store_without_room_is_read_and_said_to_be_full() -> Result<()> {
    let fleet = Fleet::new()?;
    let redis = fleet.store(&["--maxmemory-policy", "noeviction"])?;
    let upstream = fleet.upstream()?;
    let (one, other) = (
        fleet.machine("one", BUDGET)?,
        fleet.machine("other", BUDGET)?,
    );
    one.dig("www.example.test")?;
    one.wait_counter("written", 1)?;
    redis.ask(&["CONFIG", "SET", "maxmemory", "1"])?;

    one.dig("more.example.test")?;
    one.wait_counter("unwritten", 1)?;
    one.wait_state("it takes no answers")?;
    assert!(one.daemon.log().contains("it has no memory left"));
    let before = upstream.seen();
    other.dig("www.example.test")?;
    assert_eq!(upstream.seen(), before);

    // Even a flush, which the store has no room for, reaches everybody.
    one.daemon.ask(&["cache", "flush", "--all"])?;
    other.wait_counter("flushes_received", 1)?;
    other.dig("www.example.test")?;
    assert_eq!(upstream.seen(), before + 1);

    redis.ask(&["CONFIG", "SET", "maxmemory", "0"])?;
    one.wait_connected()?;
    one.dig("most.example.test")?;
    one.wait_counter("written", 2)
}

#[test]
fn a_user_with_a_password_is_let_in_and_a_wrong_password_is_said_without_repeating_it() -> Result<()>
{
    let fleet = Fleet::new()?;
    let user =
        "fleet on >hunter2 ~interceptor:* &interceptor:* +@read +@write +@pubsub +@connection";
    let options: Vec<&str> = ["--user"].into_iter().chain(user.split(' ')).collect();
    let _redis = fleet.store(&[&options[..], &["--user", "default", "off"]].concat())?;
    let _upstream = fleet.upstream()?;
    let file = fleet.secret("password", "hunter2\n", 0o600)?;
    let by_file = format!(
        "url = \"redis://fleet@192.0.2.53/0\"\npassword_file = \"{}\"\n{BUDGET}",
        file.display()
    );
    let one = fleet.machine_with("one", &by_file)?;
    one.dig("www.example.test")?;
    one.wait_counter("written", 1)?;
    let by_url = format!("url = \"redis://fleet:hunter2@192.0.2.53/0\"\n{BUDGET}");
    let other = fleet.machine_with("other", &by_url)?;
    other.dig("www.example.test")?;
    assert_eq!(other.counter("hits")?, 1);
    other.daemon.ask(&["cache", "flush", "--all"])?;
    one.wait_counter("flushes_received", 1)?;

    let wrong = format!("url = \"redis://fleet:hunter3@192.0.2.53/0\"\n{BUDGET}");
    let wrong = fleet.launch_with("wrong", &wrong)?;
    wrong.wait_state("not with this password")?;
    assert!(wrong.dig("www3.example.test")?.contains("198.18.0.1"));

    for machine in [&one, &other, &wrong] {
        let said = machine.daemon.log() + &machine.daemon.ask(&["status", "--json"])?;
        assert!(!said.contains("hunter"), "{said}");
    }
    Ok(())
}

#[test]
fn a_password_that_has_changed_in_its_file_is_used_after_a_reload() -> Result<()> {
    let fleet = Fleet::new()?;
    let _redis = fleet.store(&["--requirepass", "hunter2"])?;
    let _upstream = fleet.upstream()?;
    let password = fleet.secret("password", "hunter1\n", 0o600)?;
    let key = fleet.secret("key", KEY, 0o600)?;
    let settings = format!(
        "url = \"redis://{STORE}\"\npassword_file = {password:?}\nkey_file = {key:?}\n{BUDGET}"
    );
    let machine = fleet.launch_with("one", &settings)?;
    machine.wait_state("not with this password")?;

    fleet.secret("password", "hunter2\n", 0o600)?;
    let told = machine.daemon.ask(&["reload"])?;
    assert_eq!(
        told,
        format!("shared_cache.password_file: {password:?} has other files or secrets\n")
    );
    machine.wait_connected()?;

    fleet.secret("key", &KEY.chars().rev().collect::<String>(), 0o600)?;
    let exit = machine.daemon.try_ask(&["reload"])?;
    assert_eq!(exit.code, Some(2), "{exit:?}");
    for part in ["shared_cache.key_file", "needs a restart"] {
        assert!(exit.stderr.contains(part), "{part}: {exit:?}");
    }
    Ok(())
}

#[test]
fn over_tls_the_store_must_show_a_certificate_of_the_authority_that_is_trusted() -> Result<()> {
    let fleet = Fleet::new()?;
    let authority = Authority::new("Lab CA")?;
    let identity = authority.issue(&["redis.lab.test", "192.0.2.53"])?;
    let _redis = Redis::with_tls(&fleet.net, STORE, &authority, &identity)?;
    let _upstream = fleet.upstream()?;
    let ca = authority.file().display();
    let trusting = [
        format!("url = \"rediss://192.0.2.53:6380\"\nca = \"{ca}\"\n{BUDGET}"),
        format!("url = \"valkeys://192.0.2.53:6380?ca={ca}#redis.lab.test\"\n{BUDGET}"),
    ];
    let one = fleet.machine_with("one", &trusting[0])?;
    one.dig("www.example.test")?;
    one.wait_counter("written", 1)?;
    let other = fleet.machine_with("other", &trusting[1])?;
    other.dig("www.example.test")?;
    assert_eq!(other.counter("hits")?, 1);

    let stranger = Authority::new("Another CA")?;
    let ca = stranger.file().display();
    let doubting = format!("url = \"rediss://192.0.2.53:6380\"\nca = \"{ca}\"\n{BUDGET}");
    let doubting = fleet.launch_with("doubting", &doubting)?;
    doubting.wait_state("is signed by `Lab CA`, whom")?;
    assert!(doubting.dig("www.example.test")?.contains("198.18.0.1"));
    Ok(())
}

#[test]
fn sealed_answers_can_be_read_by_those_who_have_the_key_alone() -> Result<()> {
    let fleet = Fleet::new()?;
    let redis = fleet.store(&[])?;
    let upstream = fleet.upstream()?;
    let right = fleet.secret("right", KEY, 0o600)?;
    let wrong = fleet.secret("wrong", &KEY.replace('0', "f"), 0o644)?;
    let sealed = |file: &PathBuf| format!("key_file = \"{}\"\n{BUDGET}", file.display());
    let (one, other) = (
        fleet.machine("one", &sealed(&right))?,
        fleet.machine("other", &sealed(&right))?,
    );
    one.dig("www.example.test")?;
    one.wait_counter("written", 1)?;
    other.dig("www.example.test")?;
    assert_eq!(upstream.seen(), 1);
    let keys = redis.keys()?;
    assert!(keys.contains("interceptor:sealed:"), "{keys}");
    assert!(!keys.contains("example"), "{keys}");
    let dump = redis.ask(&[
        "EVAL",
        "return redis.call('GET', redis.call('KEYS', 'interceptor:sealed:*')[1])",
        "0",
    ])?;
    assert!(!dump.contains("example"), "{dump}");

    let stranger = fleet.machine("stranger", &sealed(&wrong))?;
    assert!(stranger.daemon.log().contains("can be read by others"));
    assert!(stranger.dig("www.example.test")?.contains("198.18.0.1"));
    assert_eq!(upstream.seen(), 2);
    assert_eq!(stranger.counter("hits")?, 0);

    one.daemon.ask(&["cache", "flush", "--all"])?;
    other.wait_counter("flushes_received", 1)?;
    stranger.wait_counter("refused", 1)
}

#[test]
fn when_the_master_dies_machines_share_through_the_one_that_sentinels_name_next() -> Result<()> {
    let fleet = Fleet::new()?;
    let upstream = fleet.upstream()?;
    let mut watched = Watched::new(&fleet, [&[], &[]], "")?;
    let (one, other) = (
        fleet.launch_with("one", &Watched::url(BUDGET))?,
        fleet.launch_with("other", &Watched::url(BUDGET))?,
    );
    let shares = |name: &str| {
        let (written, seen) = (one.counter("written")?, upstream.seen());
        one.dig(name)?;
        one.wait_counter("written", written + 1)?;
        other.dig(name)?;
        ensure!(upstream.seen() == seen + 1, "{name} is not shared");
        anyhow::Ok(())
    };
    for machine in [&one, &other] {
        machine.wait_state("connected to the master at 192.0.2.61:6379")?;
    }
    shares("www1.example.test")?;

    watched.servers[0].stop();
    for machine in [&one, &other] {
        machine.wait_state("connected to the master at 192.0.2.62:6379")?;
        // It may not know of flushes that its predecessor took.
        machine.wait_counter("flushes_sent", 1)?;
    }

    shares("www2.example.test")?;
    let (received, seen) = (other.counter("flushes_received")?, upstream.seen());
    one.daemon.ask(&["cache", "flush", "www2.example.test"])?;
    other.wait_counter("flushes_received", received + 1)?;
    other.dig("www2.example.test")?;
    assert_eq!(upstream.seen(), seen + 1);
    let log = one.daemon.log();
    let url = "redis+sentinel://192.0.2.60:26379,192.0.2.63:26379/mymaster";
    // It may have been looked for before anybody named it.
    let first = ["", "back, "].map(|again| {
        format!("shared cache {url}: {again}connected to the master at 192.0.2.61:6379")
    });
    assert!(first.iter().any(|line| log.contains(line)), "{log}");
    let then = format!("shared cache {url}: back, connected to the master at 192.0.2.62:6379");
    assert!(log.contains(&then), "{log}");

    // It becomes a replica of the other.
    watched.servers[0].restart()?;
    watched.wait_replica(0)?;
    shares("www3.example.test")?;
    one.wait_state("connected to the master at 192.0.2.62:6379")
}

#[test]
fn a_master_that_steps_down_is_left_for_its_successor_and_passwords_are_given() -> Result<()> {
    let fleet = Fleet::new()?;
    let _upstream = fleet.upstream()?;
    let guarded = ["--requirepass", "hunter2", "--masterauth", "hunter2"];
    let lines = "requirepass hunter2\nsentinel auth-pass mymaster hunter2";
    let watched = Watched::new(&fleet, [&guarded, &guarded], lines)?;
    let file = fleet.secret("password", "hunter2\n", 0o600)?;
    let with_password = format!("{BUDGET}password_file = \"{}\"\n", file.display());
    let one = fleet.launch_with("one", &Watched::url(&with_password))?;
    let stranger = fleet.launch_with("stranger", &Watched::url(BUDGET))?;
    one.wait_state("connected to the master at 192.0.2.61:6379")?;
    stranger.wait_state("192.0.2.63:26379: it wants a password")?;

    until("the sentinel has another take over", || {
        let command = ["SENTINEL", "FAILOVER", Sentinel::MASTER];
        let answer = watched.ask_sentinel(&command).ok()?;
        answer.contains("OK").then_some(())
    })?;

    one.wait_state("connected to the master at 192.0.2.62:6379")?;
    one.dig("www.example.test")?;
    one.wait_counter("written", 1)?;
    let said = one.daemon.log() + &one.daemon.ask(&["status", "--json"])?;
    assert!(!said.contains("hunter2"), "{said}");
    Ok(())
}

#[test]
fn what_sentinels_name_is_used_as_long_as_it_is_a_master() -> Result<()> {
    let fleet = Fleet::new()?;
    let _upstream = fleet.upstream()?;
    let watched = Watched::new(&fleet, [&[], &[]], "")?;
    let one = fleet.launch_with("one", &Watched::url(BUDGET))?;
    one.wait_state("connected to the master at 192.0.2.61:6379")?;

    // Neither does that end connections, nor do sentinels notice it soon.
    watched.servers[0].ask(&["REPLICAOF", "192.0.2.69", "6379"])?;
    assert!(one.dig("www1.example.test")?.contains("198.18.0.1"));

    one.wait_state("but that is a replica")?;
    assert!(one.dig("www2.example.test")?.contains("198.18.0.1"));
    watched.servers[0].ask(&["REPLICAOF", "NO", "ONE"])?;
    one.wait_state("connected to the master at 192.0.2.6")
}

#[test]
fn a_sentinel_that_names_a_dead_server_or_this_host_is_not_the_only_one_believed() -> Result<()> {
    const MISLED: &str = "192.0.2.60";
    for wrong in ["192.0.2.69:6379", "127.0.0.1:6379", "192.0.2.62:6379"] {
        let fleet = Fleet::new()?;
        let _upstream = fleet.upstream()?;
        let _watched = Watched::new(&fleet, [&[], &[]], "")?;
        let line = format!("ip address add {MISLED}/32 dev lo");
        fleet.net.run(&line)?;
        let _misled = Sentinel::start(&fleet.net, MISLED.parse()?, wrong.parse()?, "")?;

        let one = fleet.launch_with("one", &Watched::url(BUDGET))?;

        one.wait_state("connected to the master at 192.0.2.61:6379")?;
        one.dig("www.example.test")?;
        one.wait_counter("written", 1)?;
    }
    Ok(())
}

#[test]
fn a_sentinel_elsewhere_does_not_send_the_password_to_this_host() -> Result<()> {
    let fleet = Fleet::new()?;
    let _upstream = fleet.upstream()?;
    let _sentinel = Sentinel::start(&fleet.net, STORE, "127.0.0.1:6379".parse()?, "")?;
    let url = format!("url = \"redis+sentinel://:hunter2@{STORE}/mymaster\"\n");
    let one = fleet.launch_with("one", &url)?;
    one.wait_state("it names the master by 127.0.0.1, which others cannot reach")?;
    assert!(one.dig("www.example.test")?.contains("198.18.0.1"));
    Ok(())
}

#[test]
fn a_flush_that_a_demoted_store_refuses_is_owed_until_it_is_the_master_again() -> Result<()> {
    let fleet = Fleet::new()?;
    let redis = fleet.store(&[])?;
    let _upstream = fleet.upstream()?;
    let (one, other) = (fleet.machine("one", "")?, fleet.machine("other", "")?);
    redis.ask(&["REPLICAOF", "192.0.2.69", "6379"])?;

    one.daemon.ask(&["cache", "flush", "--all"])?;

    one.wait_state("it is a replica, or read-only")?;
    assert_eq!(one.counter("flushes_sent")?, 0);
    assert_eq!(other.counter("flushes_received")?, 0);
    redis.ask(&["REPLICAOF", "NO", "ONE"])?;
    other.wait_counter("flushes_received", 1)?;
    assert_eq!(one.counter("flushes_sent")?, 1);
    one.wait_connected()
}

#[test]
fn sentinels_that_know_no_such_master_are_said_to_and_cost_no_query() -> Result<()> {
    let fleet = Fleet::new()?;
    let _upstream = fleet.upstream()?;
    let _watched = Watched::new(&fleet, [&[], &[]], "")?;
    let url = "url = \"redis+sentinel://192.0.2.60,192.0.2.63/other\"\n";
    let one = fleet.launch_with("one", url)?;
    one.wait_state("no sentinel says where the master `other` is")?;
    one.wait_state("192.0.2.63:26379: it knows no such master")?;
    assert!(one.dig("www.example.test")?.contains("198.18.0.1"));
    Ok(())
}

#[test]
fn over_tls_sentinels_and_the_master_must_show_certificates() -> Result<()> {
    let fleet = Fleet::new()?;
    let _upstream = fleet.upstream()?;
    let authority = Authority::new("Lab CA")?;
    let identity = authority.issue(&["redis.lab.test"])?;
    let _redis = Redis::with_tls(&fleet.net, STORE, &authority, &identity)?;
    let lines = format!(
        "tls-port 26380\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\n\
         tls-auth-clients no\ntls-replication yes",
        identity.certificate.display(),
        identity.key.display(),
        authority.file().display()
    );
    let _sentinel = Sentinel::start(&fleet.net, STORE, (STORE, 6380).into(), &lines)?;
    let ca = authority.file().display();
    let settings = |name: &str| {
        let url = format!("rediss+sentinel://{STORE}:26380/mymaster#{name}");
        format!("url = \"{url}\"\nca = \"{ca}\"\n{BUDGET}")
    };

    let right = fleet.launch_with("right", &settings("redis.lab.test"))?;
    right.wait_state("connected to the master at 192.0.2.53:6380")?;
    right.dig("www.example.test")?;
    right.wait_counter("written", 1)?;

    let wrong = fleet.launch_with("wrong", &settings("other.lab.test"))?;
    wrong.wait_state("192.0.2.53:26380: ")?;
    assert!(wrong.dig("www.example.test")?.contains("198.18.0.1"));
    Ok(())
}

#[test]
fn the_store_is_reached_by_a_unix_socket_too() -> Result<()> {
    let fleet = Fleet::new()?;
    let socket = fleet.scratch.path("redis.sock");
    let socket = socket.display().to_string();
    let _redis = fleet.store(&["--unixsocket", &socket])?;
    let _upstream = fleet.upstream()?;
    let settings = format!("url = \"unix://{socket}\"\n{BUDGET}");
    let machine = fleet.machine_with("one", &settings)?;
    machine.dig("www.example.test")?;
    machine.wait_counter("written", 1)
}

#[test]
fn settings_that_cannot_be_are_told_in_one_line_without_a_password() -> Result<()> {
    let namespace = Namespace::new("bad")?;
    let scratch = Scratch::new()?;
    let short = scratch.write("short", &KEY[2..])?.display().to_string();
    let password = scratch.write("password", "hunter2")?.display().to_string();
    for (settings, part) in [
        ("url = \"http://192.0.2.1\"", "not at http://"),
        ("url = \"redis://:hunter2@redis.lab.test\"", "bootstrap"),
        ("budget = \"20ms\"", "there is no shared cache"),
        (
            "url = \"redis://192.0.2.1\"\nbudget = \"0s\"",
            "out of range",
        ),
        (
            "url = \"redis://192.0.2.1\"\nprefix = \"\"",
            "what keys begin with",
        ),
        (
            "url = \"redis://192.0.2.1\"\nkey_file = \"/nonexistent\"",
            "cannot read /nonexistent",
        ),
        (
            &format!("url = \"redis://192.0.2.1\"\nkey_file = \"{short}\""),
            "32 octets are expected",
        ),
        (
            &format!("url = \"redis://:hunter2@192.0.2.1\"\npassword_file = \"{password}\""),
            "has a password already",
        ),
        (
            "url = \"redis://192.0.2.1\"\nca = \"/etc/passwd\"",
            "is for rediss://",
        ),
        (
            "url = \"rediss://192.0.2.1\"\nca = \"/etc/passwd\"",
            "no certificate",
        ),
    ] {
        let file = scratch.write("bad.toml", format!("[shared_cache]\n{settings}\n"))?;
        for command in ["run", "check"] {
            let exit = interceptor(&namespace, &[command, "-c", &file.display().to_string()])?;
            assert_eq!(exit.code, Some(2), "{settings}: {exit:?}");
            assert_eq!(exit.stderr.lines().count(), 1, "{settings}: {exit:?}");
            assert!(exit.stderr.contains(part), "{settings}: {exit:?}");
            assert!(!exit.stderr.contains("hunter2"), "{settings}: {exit:?}");
        }
    }
    let url = "redis://fleet:hunter2@192.0.2.1";
    let exit = interceptor(&namespace, &["check", "--shared-cache", url])?;
    assert!(
        exit.stdout.contains("redis://fleet:***@192.0.2.1:6379/0"),
        "{exit:?}"
    );
    let sentinels = "redis+sentinel://:hunter2@192.0.2.1,192.0.2.2:7000/mymaster";
    let said = interceptor(&namespace, &["check", "--shared-cache", sentinels])?;
    let places = "the sentinels at 192.0.2.1:26379, 192.0.2.2:7000 would be asked in turn";
    assert!(said.stdout.contains(places), "{said:?}");
    assert!(!said.stdout.contains("hunter2"), "{said:?}");
    assert!(!exit.stdout.contains("hunter2"), "{exit:?}");
    Ok(())
}

/// A network with an upstream and a store, to which machines are connected.
struct Fleet {
    net: Arc<Namespace>,
    scratch: Scratch,
}

/// Two stores, the second a replica of the first, and a sentinel that watches them.
struct Watched {
    servers: [Redis; 2],
    sentinel: Sentinel,
    passwords: Vec<String>,
}

/// A host with a daemon and without a tunnel.
struct Machine {
    namespace: Arc<Namespace>,
    gateway: String,
    daemon: Daemon,
}

impl Fleet {
    fn new() -> Result<Self> {
        let net = Arc::new(Namespace::new("net")?);
        net.run(&format!("ip address add {STORE}/32 dev lo"))?;
        Self::around(&net)
    }

    /// One on a network that exists.
    fn around(net: &Arc<Namespace>) -> Result<Self> {
        Ok(Self {
            net: Arc::clone(net),
            scratch: Scratch::new()?,
        })
    }

    fn store(&self, options: &[&str]) -> Result<Redis> {
        Redis::start(&self.net, STORE, options)
    }

    /// An upstream that gives one address for everything, for a minute.
    fn upstream(&self) -> Result<Responder> {
        Responder::start(&self.net, (STORE, 53).into(), |query| {
            dns::address_reply_for(query, Responder::FAR_ANSWER, 60)
                .into_iter()
                .collect()
        })
    }

    fn secret(&self, name: &str, content: &str, mode: u32) -> Result<PathBuf> {
        let path = self.scratch.write(name, content)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        Ok(path)
    }

    /// A configuration file for the store as it is started usually, with `more` settings.
    fn settings(&self, more: &str) -> Result<PathBuf> {
        self.settings_file("usual", &format!("url = \"redis://{STORE}\"\n{more}"))
    }

    fn settings_file(&self, name: &str, settings: &str) -> Result<PathBuf> {
        let text = format!("[shared_cache]\n{settings}");
        self.scratch.write(&format!("{name}.toml"), text)
    }

    /// A machine that is connected to the store.
    fn machine(&self, name: &str, more: &str) -> Result<Machine> {
        self.machine_with(name, &format!("url = \"redis://{STORE}\"\n{more}"))
    }

    fn machine_with(&self, name: &str, settings: &str) -> Result<Machine> {
        let machine = self.launch_with(name, settings)?;
        machine.wait_connected()?;
        Ok(machine)
    }

    /// A machine that may not be connected to the store.
    fn launch(&self, name: &str, more: &str) -> Result<Machine> {
        self.launch_with(name, &format!("url = \"redis://{STORE}\"\n{more}"))
    }

    fn launch_with(&self, name: &str, settings: &str) -> Result<Machine> {
        let namespace = Arc::new(Namespace::new(name)?);
        let number = name
            .bytes()
            .fold(1u8, |sum, octet| sum.wrapping_mul(31) ^ octet);
        let (near, far) = (
            format!("10.99.{number}.2/24"),
            format!("10.99.{number}.1/24"),
        );
        veth(
            VethEnd {
                namespace: &namespace,
                name: "eth0",
                addresses: &[&near],
            },
            VethEnd {
                namespace: &self.net,
                name: &format!("to-{name}"),
                addresses: &[&far],
            },
        )?;
        let gateway = format!("10.99.{number}.1");
        namespace.run(&format!("ip route add default via {gateway}"))?;
        let file = self.settings_file(name, settings)?;
        let upstream = format!("udp://{STORE}");
        let arguments = ["-c", &file.display().to_string(), "--upstream", &upstream];
        let daemon = Daemon::start(&namespace, &arguments)?;
        Ok(Machine {
            namespace,
            gateway,
            daemon,
        })
    }
}

impl Watched {
    const SERVERS: [&str; 2] = ["192.0.2.61", "192.0.2.62"];
    const SENTINEL: &str = "192.0.2.63";

    /// Both servers with `options` and the sentinel with `lines` more than usual; returns when the replica is one.
    fn new(fleet: &Fleet, options: [&[&str]; 2], lines: &str) -> Result<Self> {
        for address in Self::SERVERS.iter().chain([&Self::SENTINEL]) {
            let line = format!("ip address add {address}/32 dev lo");
            fleet.net.run(&line)?;
        }
        let [master, replica] = Self::SERVERS;
        let start = |address: &str, more: &[&str], options: &[&str]| {
            let announced = ["--replica-announce-ip", address];
            let options = [&announced[..], more, options].concat();
            Redis::start(&fleet.net, address.parse()?, &options)
        };
        let at_once = ["--repl-diskless-sync-delay", "0"];
        let first = start(master, &at_once, options[0])?;
        let replicates = [&at_once[..], &["--replicaof", master, "6379"]].concat();
        let second = start(replica, &replicates, options[1])?;
        let sentinel = Self::SENTINEL.parse()?;
        let place = format!("{master}:{}", Redis::PORT).parse()?;
        let sentinel = Sentinel::start(&fleet.net, sentinel, place, lines)?;
        let password = options[0]
            .iter()
            .skip_while(|option| **option != "--requirepass")
            .nth(1);
        let watched = Self {
            servers: [first, second],
            sentinel,
            passwords: password
                .into_iter()
                .flat_map(|word| ["-a".to_owned(), (*word).to_owned()])
                .collect(),
        };
        watched.wait_replica(1)?;
        until("the sentinel knows the replica", || {
            let found = watched.ask_sentinel(&["SENTINEL", "REPLICAS", Sentinel::MASTER]);
            found.ok()?.contains(replica).then_some(())
        })?;
        Ok(watched)
    }

    /// Settings for a machine that asks a sentinel that is not there, and then the one that is.
    fn url(more: &str) -> String {
        let sentinel = Self::SENTINEL;
        format!("url = \"redis+sentinel://192.0.2.60,{sentinel}/mymaster\"\n{more}")
    }

    /// Waits until that server has what its master has.
    fn wait_replica(&self, number: usize) -> Result<()> {
        let passwords = self.passwords.iter().map(String::as_str);
        let command: Vec<&str> = passwords.chain(["INFO", "replication"]).collect();
        until("a replica has all of its master", || {
            let info = self.servers[number].ask(&command).ok()?;
            info.contains("master_link_status:up").then_some(())
        })
    }

    fn ask_sentinel(&self, command: &[&str]) -> Result<String> {
        let passwords = self.passwords.iter().map(String::as_str);
        let command: Vec<&str> = passwords.chain(command.iter().copied()).collect();
        self.sentinel.ask(&command)
    }
}

impl Machine {
    fn dig(&self, name: &str) -> Result<String> {
        self.namespace
            .run(&format!("dig +tries=1 +time=15 @10.30.30.30 {name}"))
    }

    /// The default route that went when the link was taken down.
    fn restore_route(&self) -> Result<()> {
        let line = format!("ip route add default via {}", self.gateway);
        self.namespace.run(&line).map(|_| ())
    }

    fn stats(&self) -> Result<Value> {
        let json = self.daemon.ask(&["cache", "stats", "--json"])?;
        serde_json::from_str(&json).context("stats are not JSON")
    }

    /// The shared tier.
    fn tier(&self) -> Result<Value> {
        let stats = self.stats()?;
        let tiers = stats["tiers"].as_array().cloned().unwrap_or_default();
        tiers
            .into_iter()
            .find(|tier| tier["name"] == "shared")
            .with_context(|| format!("no shared tier in {stats:#}"))
    }

    fn counter(&self, name: &str) -> Result<u64> {
        let tier = self.tier()?;
        tier["counters"][name]
            .as_u64()
            .with_context(|| format!("no counter {name} in {tier:#}"))
    }

    fn wait_counter(&self, name: &str, least: u64) -> Result<()> {
        until(&format!("{name} is {least}"), || {
            (self.counter(name).ok()? >= least).then_some(())
        })
        .with_context(|| {
            format!(
                "{:#}\n{}",
                self.tier().unwrap_or_default(),
                self.daemon.log()
            )
        })
    }

    fn wait_state(&self, part: &str) -> Result<()> {
        until(&format!("the shared cache is said to be `{part}`"), || {
            let tier = self.tier().ok()?;
            tier["state"].as_str()?.contains(part).then_some(())
        })
        .with_context(|| {
            format!(
                "{:#}\n{}",
                self.tier().unwrap_or_default(),
                self.daemon.log()
            )
        })
    }

    /// Waits until the store is in use, and takes answers.
    fn wait_connected(&self) -> Result<()> {
        until("the shared cache is connected", || {
            let tier = self.tier().ok()?;
            let state = tier["state"].as_str()?;
            state.ends_with(": connected").then_some(())
        })
        .with_context(|| {
            format!(
                "{:#}\n{}",
                self.tier().unwrap_or_default(),
                self.daemon.log()
            )
        })
    }
}

/// Clients that ask for one new name after the other until they are told to stop.
struct Names {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Names {
    fn start(machine: &Machine, clients: usize) -> Result<Self> {
        let mut names = Self {
            stop: Arc::default(),
            answered: Arc::default(),
            clients: Vec::new(),
        };
        for client in 0..clients {
            let socket = machine.namespace.udp_to(Lab::dns_v4())?;
            socket.set_read_timeout(Some(Duration::from_secs(15)))?;
            let (stop, answered) = (Arc::clone(&names.stop), Arc::clone(&names.answered));
            names.clients.push(thread::spawn(move || {
                let mut wrong = Vec::new();
                let numbers = (0..).take_while(|_| !stop.load(Ordering::Relaxed));
                for number in numbers {
                    let name = format!("n{number}-{client}.example.test");
                    if let Err(error) = ask(&socket, &name) {
                        wrong.push(format!("{name}: {error:#}"));
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                wrong
            }));
        }
        Ok(names)
    }

    /// Waits until `more` further queries came to an end.
    fn progress(&self, more: u64) -> Result<()> {
        let goal = self.answered.load(Ordering::Relaxed) + more;
        until("the load makes progress", || {
            (self.answered.load(Ordering::Relaxed) >= goal).then_some(())
        })
    }

    /// Ends it, and tells what was not answered as it should have been.
    fn stop(mut self) -> Result<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut wrong = Vec::new();
        for client in self.clients.drain(..) {
            let Ok(more) = client.join() else {
                bail!("a client panicked");
            };
            wrong.extend(more);
        }
        Ok(wrong)
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn ask(socket: &UdpSocket, name: &str) -> Result<()> {
    let query = dns::Query::new(name, 1);
    socket.send(&query.wire())?;
    let mut buffer = [0; 512];
    loop {
        let length = receive(socket, &mut buffer)?;
        let reply = dns::parse(&buffer[..length])?;
        if reply.metadata.id != query.id {
            continue;
        }
        ensure!(
            dns::first_address(&reply) == Some(Responder::FAR_ANSWER),
            "the answer is {reply}"
        );
        return Ok(());
    }
}
