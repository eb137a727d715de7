//! Tests of `[balancing]` and `[dsr]` in a host's own files.

use super::*;

#[test]
fn balancing() {
    check("[balancing]\nproxy_protocol = 'v3'", "4: balancing.proxy_protocol = \"v3\": one of v1, v2, off");
    check(
        "[balancing]\nhealth_check_node_port = 1",
        "4: balancing.health_check_node_port = 1: true or false, without quotes",
    );
    check("[balancing]\ntcp_timeout = '0s'", "4: balancing.tcp_timeout = \"0s\": 1s to 10d");
    check(
        "[balancing]\nudp_timeout = 30",
        "4: balancing.udp_timeout = 30: needs a unit, 1s to 10d: \"30s\", \"30m\" or \"30h\"",
    );
    check("[balancing]\nsync_id = 256", "4: balancing.sync_id = 256: a sync ID is 0 to 255");
    check("[balancing]\nsync = 'yes'", "4: balancing.sync = \"yes\": true or false, without quotes");
    check(
        "[balancing]\nshield = 'all'",
        "4: balancing.shield = \"all\": \"auto\" (the frontends that kube-proxy has rules for too), \"on\" (all) or \"off\" (none)",
    );
    check(
        "[balancing]\nmode = 'x'",
        "4: balancing.mode = \"x\": one of nat, dsr, dr, tunnel, proxy, announce",
    );
    check(
        "[balancing]\nscheduler = 'hash'",
        "4: balancing.scheduler = \"hash\": one of rr, wrr, lc, wlc, lblc, lblcr, dh, sh, sed, nq, fo, ovf, mh, twos",
    );
    check(
        "[balancing]\nscheduler_flags = 'mh-port, port'",
        "4: balancing.scheduler_flags = \"mh-port, port\": some of sh-fallback, sh-port, mh-fallback, mh-port",
    );
    check(
        "[balancing]\ntunnel = 'gue'",
        "4: balancing.tunnel = \"gue\": ipip, gre, or gue and a UDP port, as in gue:6080",
    );
    check(
        "[balancing]\ndrain_limit = 60",
        "4: balancing.drain_limit = 60: needs a unit, 0s to 1h: \"60s\" or \"60m\"",
    );
    let in_quotes = "a number, without quotes: a port is 1 to 65535";
    check("[balancing]\nprobe_port = '1'", &format!("4: balancing.probe_port = \"1\": {in_quotes}"));
    check("[balancing]\nprobe_port = 0", "4: balancing.probe_port = 0: a port is 1 to 65535");
    check("[balancing]\nprobe_port = 65536", "4: balancing.probe_port = 65536: a port is 1 to 65535");
    check(
        "[balancing]\nschedular = 'wlc'",
        "4: unknown key `balancing.schedular`; did you mean `scheduler`?",
    );
}

#[test]
fn dsr() {
    let refused = |line: &str, problem: &str| check(&format!("[dsr]\n{line}"), &format!("4: dsr.{problem}"));
    refused("mark_bits = 7", "mark_bits = 7: text in quotes is wanted");
    refused("mark_bits = '7'", "mark_bits = \"7\": hexadecimal digits, as in \"0x1001fff\"");
    refused("mark_bits = '0xg'", "mark_bits = \"0xg\": up to 8 hexadecimal digits after 0x");
    refused("mark_bits = '0x3'", "mark_bits = \"0x3\": at least three bits are needed");
    let wanted = "a routing table, 1 to 4294967295, but not 253 to 255, which are the kernel's";
    refused("route_table = 254", &format!("route_table = 254: {wanted}"));
    refused("route_table = '7'", &format!("route_table = \"7\": a number, without quotes: {wanted}"));
    refused("route_table = 0", &format!("route_table = 0: {wanted}"));
    refused("rule_priority = 32766", "rule_priority = 32766: 1 to 32765");
}
