package api

import "net/netip"

// Ports that the node proxy listens on inside each captured pod's network namespace.
const (
	// PortOutbound takes what the pod sends.
	PortOutbound = 15001
	// PortInbound takes plaintext that comes for the pod.
	PortInbound = 15006
	// PortHBONE takes tunnels: mutual TLS, HTTP/2 CONNECT.
	PortHBONE = 15008
	// PortDNS takes DNS queries of the pod, UDP and TCP, on loopback.
	PortDNS = 15053
)

// Ports of the programs in their own network namespace.
const (
	// PortAdmin is the node proxy's admin endpoint, on loopback.
	PortAdmin = 15000
	// PortStats serves /metrics.
	PortStats = 15020
	// PortReadiness serves /healthz/ready.
	PortReadiness = 15021
	// PortControlPlane is the control plane's xDS and CA port: TLS, gRPC.
	PortControlPlane = 15012
	// PortControlPlaneMonitoring is the control plane's /metrics, /healthz and /ready.
	PortControlPlaneMonitoring = 15014
	// PortControlPlaneDebug serves the control plane's /debug views, on loopback.
	PortControlPlaneDebug = 9876
	// PortAgentHealth is the CNI agent's /healthz and /readyz.
	PortAgentHealth = 8000
	// PortAgentMetrics is the CNI agent's /metrics.
	PortAgentMetrics = 15014
)

// Packet and connection marks, and the policy routing that brings packets with a foreign source address back to the
// proxy. The values are Istio ambient's: a peer's agent or proxy beside ours relies on them.
const (
	// MarkProxy is on every packet that the node proxy sends; such packets are not captured.
	MarkProxy = 0x539
	// MarkProxyMask is the mask of MarkProxy.
	MarkProxyMask = 0xfff
	// ConnmarkInbound is on connections that the proxy opened to the pod's application under the client's address.
	ConnmarkInbound = 0x111
	// ConnmarkMask is the mask of ConnmarkInbound.
	ConnmarkMask = 0xfff
	// RoutePreference is the priority of the `ip rule` for ConnmarkInbound.
	RoutePreference = 32764
	// RouteTable is the routing table with the local default route.
	RouteTable = 100
	// InboundPortFirst and InboundPortLast bound the source ports from which the proxy dials the application under the
	// client's address. They lie below the kernel's default ip_local_port_range (32768 to 60999), so that such a
	// connection has not the same four addresses as one that the client itself opens to the same port.
	InboundPortFirst = 16384
	InboundPortLast  = 32767
)

// Source addresses that kubelet's probes get on the host, so that rules in the pod can tell them from other traffic.
var (
	ProbeSourceIPv4 = netip.MustParseAddr("169.254.7.127")
	ProbeSourceIPv6 = netip.MustParseAddr("fd16:9254:7127:1337:ffff:ffff:ffff:ffff")
)

// Names of the host's sets of captured pods' addresses, which kubelet's probes go to.
const (
	ProbeSetIPv4 = "istio-inpod-probes-v4"
	ProbeSetIPv6 = "istio-inpod-probes-v6"
)
