// Package config turns ztunnel's environment into a validated Config, once, at the start. The names and defaults are those
// of Istio's ztunnel, so that either proxy can stand in the other's pod.
//
// Rule of the room: a setting that asks for something this proxy cannot do is an error that says so. Nothing that changes
// who may speak to whom, or how, is ignored.
package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

// Config is what the environment says. It must not be changed after Parse.
type Config struct {
	// Node says who this proxy is.
	Node Node
	// Network is the network of this node's pods; empty for the default one.
	Network string
	// ClusterID and ClusterDomain name the cluster.
	ClusterID, ClusterDomain string
	// TrustDomain is that of this node's pods, until discovery tells a pod's own.
	TrustDomain string

	// XDS and CA are the channels to the control plane.
	XDS, CA identity.ChannelConfig
	// TrustBundle is a file of roots that peers may be under, beside those that come with certificates. It may be missing.
	TrustBundle string
	// CRLPath is a file of revocation lists; empty for none. StrictCRL refuses certificates whose issuer's list is out of date.
	CRLPath   string
	StrictCRL bool
	// PostQuantumOnly leaves X25519MLKEM768 as the only key exchange.
	PostQuantumOnly bool
	// SecretTTL is the validity to ask for in certificates.
	SecretTTL time.Duration

	// ZDSSocket is where the CNI agent listens.
	ZDSSocket string
	// HandoverSocket is where this proxy lends its sockets to its successor, and DepotSocket where the agent keeps them. Empty:
	// not at all.
	HandoverSocket, DepotSocket string
	// StateDir is where the last good configuration is saved, on disk, and KeyDir where certificates and keys are kept, in memory
	// (a tmpfs). Empty: not at all.
	StateDir, KeyDir string
	// StateMaxAge is how long the control plane may have been away for what is saved to be served from at a start.
	StateMaxAge time.Duration
	// PortReuse lets another ztunnel listen in the same pods, as it must during an upgrade.
	PortReuse bool
	// PacketMark is put on all packets to upstreams, by which the pods' rules know them.
	PacketMark int
	// DNS has pods' name queries answered; the CNI agent redirects them only where somebody listens.
	DNS bool
	// IPv6 has pods served on both families, where they have both.
	IPv6 bool
	// OriginalSource has applications see the client's address. Where that is impossible, the connection is refused.
	OriginalSource bool

	// Processors is how many threads run at once (GOMAXPROCS). Zero: as Go chooses from cores and cgroup.
	Processors int
	// PoolStreams is how many streams share a tunnel connection, PoolIdle how long one without streams is kept.
	PoolStreams int
	PoolIdle    time.Duration
	// H2 are the settings of tunnel connections.
	H2 h2.Config
	// KeepAlive is TCP's, on accepted connections and upstream. UserTimeout is TCP_USER_TIMEOUT there; zero for none.
	KeepAlive   net.KeepAliveConfig
	UserTimeout time.Duration

	// Limits bound what one pod may take, Timeouts the steps and the silence of connections.
	Limits   Limits
	Timeouts Timeouts

	// Grace is how long connections may go on after the proxy was told to end.
	Grace time.Duration
	// DrainLimit is how long connections of a pod may go on that was deleted while its namespace lives.
	DrainLimit time.Duration

	// LogFilter and LogJSON are how the log starts.
	LogFilter []telemetry.Directive
	LogJSON   bool
	// AccessLogSampling is the share of successful connections in the access log, from 0 to 1.
	AccessLogSampling float64
	// MetricsIdle is how long series are kept that nothing has used.
	MetricsIdle time.Duration
	// ResolvConf is the file that names the resolvers which are asked for workloads that have only a host name.
	ResolvConf string
	// PolicyInfo logs decisions of dry-run policies at info instead of debug.
	PolicyInfo bool
	// ResponseBaggage has responses to tunnel requests describe the destination.
	ResponseBaggage bool

	// AdminPort is on loopback, the others on all addresses of the proxy's own namespace.
	AdminPort, StatsPort, ReadinessPort uint16

	// Notes are remarks on settings that have no effect, for the log.
	Notes []string
}

// Node says who the proxy is. Empty fields are unknown.
type Node struct {
	Name           string
	PodName        string
	PodNamespace   string
	ServiceAccount string
	InstanceIP     string
	// Metadata are further fields for the control plane: values are strings, or decoded JSON.
	Metadata map[string]any
}

// ID is the node's id in xDS. Its first part makes the control plane serve what a node proxy needs.
func (n Node) ID() string {
	ip := n.InstanceIP
	if ip == "" {
		ip = "1.1.1.1"
	}
	return fmt.Sprintf("ztunnel~%s~%s.%s~%s.svc.cluster.local", ip, n.PodName, n.PodNamespace, n.PodNamespace)
}

// Defaults that other packages and tests refer to.
const (
	DefaultRootCA    = "/var/run/secrets/istio/root-cert.pem"
	DefaultToken     = "/var/run/secrets/tokens/istio-token"
	DefaultMeshFile  = "/etc/istio/config/mesh"
	DefaultSecretTTL = 24 * time.Hour
	// DefaultDrainLimit is AMBIT_DRAIN_LIMIT's.
	DefaultDrainLimit = time.Hour
	// defaultGrace is how long connections go on where no grace period is known.
	defaultGrace = 5 * time.Second
	// defaultStateMaxAge is the validity of certificates that is asked for by default.
	defaultStateMaxAge = DefaultSecretTTL
)

// Parse reads an environment of the form of os.Environ. Its error joins all that is wrong.
func Parse(environ []string) (*Config, error) {
	e, err := newEnv(environ)
	if err != nil {
		return nil, err
	}
	return e.parse()
}

func (e *env) parse() (*Config, error) {
	e.refuseUnsupported()
	c := &Config{
		Node: Node{
			Name:           e.text("NODE_NAME", ""),
			PodName:        e.text("POD_NAME", ""),
			PodNamespace:   e.text("POD_NAMESPACE", ""),
			ServiceAccount: e.text("SERVICE_ACCOUNT", ""),
			InstanceIP:     e.text("INSTANCE_IP", ""),
			Metadata:       e.metadata(),
		},
		Network:           e.text("NETWORK", ""),
		ClusterID:         e.text("CLUSTER_ID", e.text("ISTIO_META_CLUSTER_ID", api.DefaultClusterID)),
		ClusterDomain:     e.text("CLUSTER_DOMAIN", api.DefaultClusterDomain),
		TrustDomain:       e.text("TRUST_DOMAIN", api.DefaultTrustDomain),
		SecretTTL:         e.duration("SECRET_TTL", DefaultSecretTTL, time.Minute),
		ZDSSocket:         e.text("INPOD_UDS", api.ZDSSocket),
		PortReuse:         e.flag("INPOD_PORT_REUSE", true),
		PacketMark:        e.integer("PACKET_MARK", api.MarkProxy, 1, math.MaxInt32),
		DNS:               e.flag("ISTIO_META_DNS_CAPTURE", true),
		IPv6:              e.flag("IPV6_ENABLED", true),
		OriginalSource:    e.flag("ENABLE_ORIG_SRC", true),
		Processors:        e.processors(runtime.NumCPU()),
		PoolStreams:       e.integer("POOL_MAX_STREAMS_PER_CONNECTION", 100, 1, 1<<16),
		PoolIdle:          e.duration("POOL_UNUSED_RELEASE_TIMEOUT", 5*time.Minute, time.Second),
		KeepAlive:         e.keepAlive(),
		Grace:             e.grace(),
		DrainLimit:        e.duration("AMBIT_DRAIN_LIMIT", DefaultDrainLimit, 0),
		LogJSON:           e.choice("LOG_FORMAT", "plain", "plain", "json") == "json",
		AccessLogSampling: e.share("AMBIT_ACCESS_LOG_SAMPLING", 1),
		MetricsIdle:       e.duration("AMBIT_METRICS_IDLE", telemetry.DefaultIdle, time.Minute),
		ResolvConf:        e.text("AMBIT_RESOLV_CONF", "/etc/resolv.conf"),
		PolicyInfo:        e.flag("AUTHZ_POLICY_INFO_LOGGING", false),
		ResponseBaggage:   e.flag("ENABLE_RESPONSE_BAGGAGE", true),
		AdminPort:         e.port("proxyAdminPort", e.file.ProxyAdminPort, api.PortAdmin),
		StatsPort:         e.port("statsPort", e.file.StatsPort, api.PortStats),
		ReadinessPort:     api.PortReadiness,
		H2: h2.Config{
			StreamWindow: int32(e.integer("HTTP2_STREAM_WINDOW_SIZE", h2.DefaultStreamWindow, 65535, math.MaxInt32)),
			ConnWindow:   int32(e.integer("HTTP2_CONNECTION_WINDOW_SIZE", h2.DefaultConnWindow, 65535, math.MaxInt32)),
			MaxFrameSize: uint32(e.integer("HTTP2_FRAME_SIZE", h2.DefaultMaxFrameSize, 16384, 1<<24-1)),
		},
	}
	c.Limits, c.Timeouts = e.limits(), e.timeouts()
	c.StateDir, c.KeyDir = e.path("AMBIT_STATE_DIR", "off"), e.path("AMBIT_KEY_DIR", "off")
	c.StateMaxAge = e.duration("AMBIT_STATE_MAX_AGE", defaultStateMaxAge, time.Minute)
	c.HandoverSocket = e.path("AMBIT_HANDOVER_SOCKET", c.ZDSSocket+api.HandoverSuffix)
	c.DepotSocket = e.path("AMBIT_DEPOT_SOCKET", c.ZDSSocket+api.DepotSuffix)
	if e.flag("USER_TIMEOUT_ENABLED", false) {
		k := c.KeepAlive
		c.UserTimeout = k.Idle + time.Duration(k.Count)*k.Interval
	}
	c.LogFilter = e.logFilter()
	e.controlPlane(c)
	e.identity(c)
	if c.PacketMark&api.MarkProxyMask != api.MarkProxy {
		e.note("PACKET_MARK=%#x differs from the mark that ambit's rules look for (%#x/%#x): the pods' rules must be "+
			"another agent's", c.PacketMark, api.MarkProxy, api.MarkProxyMask)
	}
	e.noteUnknown()
	c.Notes = e.notes
	if len(e.errs) > 0 {
		return nil, fmt.Errorf("settings: %w", errors.Join(e.errs...))
	}
	return c, nil
}

// refuseUnsupported names what is asked for and not there.
func (e *env) refuseUnsupported() {
	refuse := func(name, why string) {
		e.fail(name, "%q is not supported: %s", e.vars[name], why)
	}
	if !e.flag("ENABLE_PROXY", true) {
		refuse("ENABLE_PROXY", "there is nothing else that this program does")
	}
	if e.choice("PROXY_MODE", "shared", "shared", "dedicated") != "shared" {
		refuse("PROXY_MODE", "this proxy serves the pods that a CNI agent hands to it (shared)")
	}
	for _, unsupported := range []struct{ name, why string }{
		{"PROXY_WORKLOAD_INFO", "it belongs to PROXY_MODE=dedicated"},
		{"LOCAL_XDS_PATH", "discovery comes from XDS_ADDRESS only"},
		{"LOCAL_XDS", "discovery comes from XDS_ADDRESS only"},
		{"PREFERED_SERVICE_NAMESPACE", "of services with one host name, a pod gets its own namespace's, else the canonical one"},
	} {
		if e.get(unsupported.name) != "" {
			refuse(unsupported.name, unsupported.why)
		}
	}
	for _, unsupported := range []struct{ name, why string }{
		{"FAKE_CA", "certificates come from CA_ADDRESS only"},
		{"XDS_ON_DEMAND", "all addresses are subscribed to"},
		{"UNSTABLE_ENABLE_SOCKS5", "there is no SOCKS port"},
		{"TLS12_ENABLED", "tunnels are TLS 1.3"},
	} {
		if e.flag(unsupported.name, false) {
			refuse(unsupported.name, unsupported.why)
		}
	}
}

// controlPlane reads the settings of the two channels.
func (e *env) controlPlane(c *Config) {
	address := "https://localhost:" + strconv.Itoa(api.PortControlPlane)
	if e.vars["KUBERNETES_SERVICE_HOST"] != "" {
		address = fmt.Sprintf("https://%s.%s.svc:%d", api.ControlPlaneService, api.DefaultNamespace, api.PortControlPlane)
	}
	if a := e.file.DiscoveryAddress; a != "" {
		address = a
		if !strings.Contains(a, "://") {
			address = "https://" + a
		}
	}
	token := e.text("AUTH_TOKEN", DefaultToken)
	channel := func(kind string) identity.ChannelConfig {
		ch := identity.ChannelConfig{
			Address:    address,
			RootCA:     e.text(kind+"_ROOT_CA", DefaultRootCA),
			ServerName: e.text("ALT_"+kind+"_HOSTNAME", ""),
			TokenFile:  token,
			Headers:    map[string]string{"clusterid": c.ClusterID},
		}
		if _, set := e.vars[kind+"_ADDRESS"]; set {
			ch.Address = e.get(kind + "_ADDRESS")
			if ch.Address == "" {
				e.fail(kind+"_ADDRESS", "is empty: there is no other source than the control plane")
			}
		}
		for name, value := range e.vars {
			if header, ok := strings.CutPrefix(name, kind+"_HEADER_"); ok {
				ch.Headers[strings.ToLower(header)] = value
			}
		}
		return ch
	}
	c.XDS, c.CA = channel("XDS"), channel("CA")
}

// keepAlive reads TCP's settings.
func (e *env) keepAlive() net.KeepAliveConfig {
	k := net.KeepAliveConfig{
		Enable:   e.flag("KEEPALIVE_ENABLED", true),
		Idle:     e.duration("KEEPALIVE_TIME", 180*time.Second, time.Second),
		Interval: e.duration("KEEPALIVE_INTERVAL", 180*time.Second, time.Second),
		Count:    e.integer("KEEPALIVE_RETRIES", 9, 1, 127),
	}
	return k
}

// grace is how long connections go on after SIGTERM: some seconds less than Kubernetes waits before SIGKILL.
func (e *env) grace() time.Duration {
	seconds := e.integer("TERMINATION_GRACE_PERIOD_SECONDS", -1, 0, math.MaxInt32)
	d := defaultGrace
	switch period := time.Duration(seconds) * time.Second; {
	case seconds > 10:
		d = period - 5*time.Second
	case seconds >= 0:
		d = max(period-time.Second, time.Second)
	}
	return e.duration("CONNECTION_TERMINATION_DEADLINE", d, 0)
}

// processors follows Istio's rule as far as it is explicit: a number or percentage, else the CPU limit. Otherwise Go, which
// knows the cgroup, chooses better.
func (e *env) processors(cores int) int {
	const name = "ZTUNNEL_WORKER_THREADS"
	s := e.text(name, "")
	if percent, ok := strings.CutSuffix(s, "%"); ok {
		p, err := strconv.ParseFloat(percent, 64)
		if err != nil || p <= 0 || p > 100 {
			e.fail(name, "%q is not a percentage between 0 and 100", s)
			return 0
		}
		return max(1, int(math.Ceil(p/100*float64(cores))))
	}
	if s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			e.fail(name, "%q is neither a number nor a percentage", s)
			return 0
		}
		if n == 0 {
			return cores
		}
		return n
	}
	for _, name := range []string{"ZTUNNEL_CPU_LIMIT", "ZTUNNEL_RESOURCE_CPU_LIMIT"} {
		if s := e.text(name, ""); s != "" {
			cpus, err := parseCPU(s)
			if err != nil {
				e.fail(name, "%q is not a quantity of CPU", s)
				return 0
			}
			return min(cores, max(1, int(math.Ceil(cpus))))
		}
	}
	return 0
}

// parseCPU reads Kubernetes' notation: "2", "0.5", "1500m".
func parseCPU(s string) (float64, error) {
	milli, isMilli := strings.CutSuffix(s, "m")
	n, err := strconv.ParseFloat(milli, 64)
	if err == nil && (n < 0 || math.IsNaN(n) || math.IsInf(n, 0)) {
		err = strconv.ErrRange
	}
	if isMilli {
		n /= 1000
	}
	return n, err
}

// logFilter reads RUST_LOG. Targets that there are not are the program's to note: it knows them.
func (e *env) logFilter() []telemetry.Directive {
	const name = "RUST_LOG"
	filter, err := telemetry.ParseFilter(e.text(name, ""))
	if err != nil {
		e.fail(name, "%v", err)
	}
	return filter
}

// readMeshFile returns the proxy settings that a mesh-wide file holds; none if there is no file.
func readMeshFile(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return b, err
}
