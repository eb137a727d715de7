//! Which forwarding mode serves a Service at a VIP, or why none can.
//!
//! The ConfigMap's method counts before the Service's annotation, and that before the settings. externalTrafficPolicy
//! Local promises the client's address to the pod: mode nat cannot keep that, so where nobody names a mode it is dsr.

use std::net::IpAddr;

use super::asks::{Source, Want};
use super::grammar::{self, Entry, Method};
use super::options::{MODE, Options};
use super::{Inputs, annotations, shield};
use crate::config::{Mode, ProxyProtocol};
use crate::model::{Finding, ObjectKey, Protocol};
use crate::snapshot::{Service, ServicePort};

/// Why a Service is not served at a VIP.
#[derive(Debug)]
pub struct Refused {
    /// What is said of it.
    pub finding: Finding,
    /// It is what its status has there, which must therefore stay.
    pub by_its_status: bool,
}

/// The entry of the ConfigMap that names the mode of a Service at a VIP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    config_map: ObjectKey,
    key: String,
    entry: Entry,
}

impl Named {
    /// That of `want`, where it names a mode.
    pub fn of(inputs: &Inputs, vip: IpAddr, want: &Want) -> Option<Self> {
        want.entry.method?;
        let config_map = inputs.settings.cluster.config_map.clone();
        Some(Self { config_map, key: grammar::key_of(vip), entry: want.entry.clone() })
    }
}

/// What to do to have the Service `key` served in `mode`, where `named` says that the ConfigMap names another.
pub fn use_mode(key: &ObjectKey, named: Option<&Named>, mode: Mode) -> String {
    let Some(Named { config_map: ObjectKey { namespace, name }, key, entry }) = named else {
        return annotations::annotate(key, &format!("{MODE}={}", mode.name()));
    };
    let entry = entry.written_with(mode);
    format!("kubectl -n {namespace} edit configmap {name}, and in key \"{key}\" write {entry}")
}

/// Why kube-proxy would drop packets for pods of policy Local.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dropped {
    ExternalIp,
    /// The status does not tell kube-proxy to leave the VIP alone.
    WithoutIpMode,
}

impl Dropped {
    fn words(self) -> &'static str {
        match self {
            Self::ExternalIp => {
                "kube-proxy drops packets to externalIPs of policy Local on nodes without a pod of it"
            }
            Self::WithoutIpMode => {
                "its status lacks ipMode Proxy, so kube-proxy drops packets of policy Local on nodes without a pod of it"
            }
        }
    }
}

/// The mode of what `want` asks for, where `named` is the entry of the ConfigMap that names it.
pub fn of(
    inputs: &Inputs,
    vip: IpAddr,
    want: &Want,
    named: Option<&Named>,
    service: &Service,
    options: &Options,
) -> Result<Mode, Refused> {
    let key = &want.entry.service;
    let by_name = want.entry.method.map(Method::mode).or(options.mode);
    let because = |why: &str, mend: String, by_its_status| {
        let finding = Finding::new(key, format!("not served at {vip}: {why}")).mend(mend);
        Err(Refused { finding, by_its_status })
    };
    let refused = |why: &str, mend: String| because(why, mend, false);
    match by_name.unwrap_or(inputs.settings.balancing.mode) {
        Mode::Proxy if service.local_policy && options.proxy_protocol == ProxyProtocol::Off => refused(
            "externalTrafficPolicy Local keeps the client's address, which mode proxy cannot without the PROXY protocol",
            use_mode(key, named, Mode::Dsr),
        ),
        Mode::Nat if service.local_policy && by_name.is_some() => refused(
            "externalTrafficPolicy Local keeps the client's address, which mode nat cannot",
            use_mode(key, named, Mode::Dsr),
        ),
        Mode::Announce if service.local_policy => refused(
            "in mode announce others drop packets of externalTrafficPolicy Local on a holder without a pod of it",
            use_mode(key, named, Mode::Dsr),
        ),
        mode if service.local_policy => match dropped_by_kube_proxy(vip, want.source, service) {
            Some(why) => because(why.words(), policy_cluster(key), why == Dropped::WithoutIpMode),
            None if mode == Mode::Nat => Ok(Mode::Dsr),
            None => Ok(mode),
        },
        mode => Ok(mode),
    }
}

/// Why packets for pods of policy Local would not get through, if so: on nodes without such pods kube-proxy drops what
/// comes for an address that it balances itself, before IPVS has seen it.
fn dropped_by_kube_proxy(vip: IpAddr, source: Source, service: &Service) -> Option<Dropped> {
    if source == Source::ExternalIp || service.external_ips.contains(&vip) {
        return Some(Dropped::ExternalIp);
    }
    let ingress = service.load_balancer.iter().flat_map(|balancer| &balancer.ingress);
    let mut shown = ingress.filter(|entry| entry.ip.parse() == Ok(vip));
    let lacks = |mode: Option<&str>| match (source, mode) {
        (_, Some("Proxy")) => false,
        // An entry of kvip's, which it writes anew. Without a mode it was dropped by the API server.
        (Source::LoadBalancer, mode) => mode.is_none(),
        _ => true,
    };
    shown.any(|entry| lacks(entry.mode.as_deref())).then_some(Dropped::WithoutIpMode)
}

/// The finding of a VIP that is only announced, and that kube-proxy and its like have never heard of: they balance what stands
/// in externalIPs and in the status, where kvip writes the addresses of pools alone.
pub fn unbalanced(vip: IpAddr, want: &Want, service: &Service) -> Option<Finding> {
    if want.source == Source::LoadBalancer || shield::addresses(service).any(|known| known == vip) {
        return None;
    }
    let ObjectKey { namespace, name } = &want.entry.service;
    let known = service.external_ips.iter().chain([&vip]).map(|ip| format!("\"{ip}\"")).collect::<Vec<_>>();
    let text = format!(
        "{vip} is held but nobody balances it: in mode announce others do, and the Service has it neither in externalIPs nor \
         in its status"
    );
    let mend = format!(
        "kubectl -n {namespace} patch service {name} -p '{{\"spec\":{{\"externalIPs\":[{}]}}}}', or let it ask by type \
         LoadBalancer",
        known.join(",")
    );
    Some(Finding::new(&want.entry.service, text).mend(mend))
}

/// Why `port` cannot be served in `mode`, if so.
pub fn unfit(
    vip: IpAddr,
    key: &ObjectKey,
    named: Option<&Named>,
    port: &ServicePort,
    mode: Mode,
) -> Option<Finding> {
    if mode != Mode::Proxy || port.protocol == Protocol::Tcp {
        return None;
    }
    let text = format!("not served at {vip} {} {}: mode proxy is for TCP alone", port.protocol, port.port);
    let mend = format!("{}, or a Service of its own for the port", use_mode(key, named, Mode::Nat));
    Some(Finding::new(key, text).mend(mend))
}

fn policy_cluster(key: &ObjectKey) -> String {
    let ObjectKey { namespace, name } = key;
    format!(
        "kubectl -n {namespace} patch service {name} -p '{{\"spec\":{{\"externalTrafficPolicy\":\"Cluster\"}}}}'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Ingress, LoadBalancer};

    const VIP: &str = "10.87.2.70";

    /// Whether a status that has the VIP with `mode` keeps policy Local from being served.
    #[track_caller]
    fn check(source: Source, mode: Option<&str>, refused: bool) {
        let entry = Ingress { ip: VIP.into(), mode: mode.map(str::to_owned), ..Ingress::default() };
        let load_balancer = Some(LoadBalancer { ingress: vec![entry], ..LoadBalancer::default() });
        let service = Service { load_balancer, ..Service::default() };
        let why = dropped_by_kube_proxy(VIP.parse().unwrap(), source, &service);
        assert_eq!(why, refused.then_some(Dropped::WithoutIpMode), "{source} {mode:?}");
    }

    #[test]
    fn what_kvip_is_to_write_anew_is_no_obstacle() {
        check(Source::LoadBalancer, Some("Proxy"), false);
        check(Source::LoadBalancer, Some("VIP"), false);
        check(Source::LoadBalancer, None, true);
        check(Source::Annotation, Some("Proxy"), false);
        check(Source::Annotation, Some("VIP"), true);
        check(Source::Annotation, None, true);
    }

    #[test]
    fn what_is_announced_must_be_known_to_those_who_balance() {
        let entry = |mode: Option<&str>| Ingress {
            ip: VIP.into(),
            mode: mode.map(str::to_owned),
            ..Ingress::default()
        };
        let of = |ips: &[&str], ingress: &[Ingress]| Service {
            external_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            load_balancer: Some(LoadBalancer { ingress: ingress.to_vec(), ..LoadBalancer::default() }),
            ..Service::default()
        };
        let finding = |source, service: &Service| {
            let entry = Entry { service: ObjectKey::new("default", "web"), port: None, method: None };
            unbalanced(VIP.parse().unwrap(), &Want { entry, source, only: None }, service)
        };
        let lacks = |source, service: &Service| finding(source, service).is_some();
        for source in [Source::ConfigMap, Source::Annotation] {
            assert!(lacks(source, &of(&[], &[])));
            assert!(lacks(source, &of(&["10.87.2.71"], &[entry(Some("Proxy"))])));
            assert!(!lacks(source, &of(&[VIP], &[])));
            assert!(!lacks(source, &of(&[], &[entry(None)])));
            assert!(!lacks(source, &of(&[], &[entry(Some("VIP"))])));
        }
        assert!(!lacks(Source::LoadBalancer, &of(&[], &[])));
        let mend = finding(Source::ConfigMap, &of(&["10.87.2.71"], &[])).unwrap().mend.unwrap();
        assert!(mend.contains(r#"-p '{"spec":{"externalIPs":["10.87.2.71","10.87.2.70"]}}'"#), "{mend}");
    }

    #[test]
    fn of_external_ips_kube_proxy_drops_all_however_they_are_asked_for() {
        let vip = VIP.parse().unwrap();
        let dropped = |source, external_ips: &[IpAddr]| {
            let service = Service { external_ips: external_ips.to_vec(), ..Service::default() };
            dropped_by_kube_proxy(vip, source, &service)
        };
        for source in [Source::ExternalIp, Source::ConfigMap, Source::LoadBalancer, Source::Annotation] {
            assert_eq!(dropped(source, &[vip]), Some(Dropped::ExternalIp), "{source}");
        }
        assert_eq!(dropped(Source::ConfigMap, &["10.87.2.71".parse().unwrap()]), None);
    }
}
