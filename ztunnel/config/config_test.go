package config

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/mesh/h2"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

func TestDefaults(t *testing.T) {
	got, err := Parse([]string{"KUBERNETES_SERVICE_HOST=10.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	channel := identity.ChannelConfig{
		Address:   "https://istiod.istio-system.svc:15012",
		RootCA:    "/var/run/secrets/istio/root-cert.pem",
		TokenFile: "/var/run/secrets/tokens/istio-token",
		Headers:   map[string]string{"clusterid": "Kubernetes"},
	}
	want := &Config{
		Node:           Node{Metadata: map[string]any{}},
		ClusterID:      "Kubernetes",
		ClusterDomain:  "cluster.local",
		TrustDomain:    "cluster.local",
		XDS:            channel,
		CA:             channel,
		TrustBundle:    "/var/run/secrets/istio/root-cert.pem",
		SecretTTL:      24 * time.Hour,
		ZDSSocket:      "/var/run/ztunnel/ztunnel.sock",
		PortReuse:      true,
		PacketMark:     1337,
		DNS:            true,
		IPv6:           true,
		OriginalSource: true,
		PoolStreams:    100,
		PoolIdle:       5 * time.Minute,
		H2:             h2.Config{StreamWindow: 4194304, ConnWindow: 16777216, MaxFrameSize: 1048576},
		KeepAlive:      net.KeepAliveConfig{Enable: true, Idle: 180 * time.Second, Interval: 180 * time.Second, Count: 9},
		Limits:         Limits{Connections: 65536, Tunnels: 16384, Handshakes: 256, Buffered: 134217728, Share: 0.1},
		Timeouts: Timeouts{
			Connect: 10 * time.Second, Handshake: 10 * time.Second, Settings: 10 * time.Second, Response: 20 * time.Second,
			HalfClose: time.Hour, HalfCloseProbe: 15 * time.Second, TunnelIdle: 15 * time.Minute,
		},
		Grace:             5 * time.Second,
		DrainLimit:        time.Hour,
		ResponseBaggage:   true,
		AccessLogSampling: 1,
		MetricsIdle:       time.Hour,
		StateMaxAge:       24 * time.Hour,
		ResolvConf:        "/etc/resolv.conf",
		AdminPort:         15000,
		StatsPort:         15020,
		ReadinessPort:     15021,
	}
	want.HandoverSocket, want.DepotSocket = want.ZDSSocket+".handover", want.ZDSSocket+".depot"
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(h2.Config{})); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
	if api.MarkProxy != got.PacketMark {
		t.Errorf("mark %#x, the rules look for %#x", got.PacketMark, api.MarkProxy)
	}
}

func TestSettings(t *testing.T) {
	for _, tc := range []struct {
		name  string
		env   []string
		value func(*Config) any
		want  any
	}{
		{"outside a cluster", nil, func(c *Config) any { return c.XDS.Address }, "https://localhost:15012"},
		{"address", []string{"XDS_ADDRESS=http://127.0.0.1:1", "CA_ADDRESS=https://ca:2"},
			func(c *Config) any { return c.XDS.Address + " " + c.CA.Address }, "http://127.0.0.1:1 https://ca:2"},
		{"alternative host name", []string{"ALT_XDS_HOSTNAME=a", "ALT_CA_HOSTNAME=b"},
			func(c *Config) any { return c.XDS.ServerName + c.CA.ServerName }, "ab"},
		{"cluster of the metadata", []string{"ISTIO_META_CLUSTER_ID=west"},
			func(c *Config) any { return c.ClusterID + c.XDS.Headers["clusterid"] }, "westwest"},
		{"cluster", []string{"ISTIO_META_CLUSTER_ID=west", "CLUSTER_ID=east"}, func(c *Config) any { return c.ClusterID }, "east"},
		{"header", []string{"XDS_HEADER_Foo=bar"}, func(c *Config) any { return c.XDS.Headers["foo"] + c.CA.Headers["foo"] }, "bar"},
		{"grace of a long period", []string{"TERMINATION_GRACE_PERIOD_SECONDS=30"}, func(c *Config) any { return c.Grace }, 25 * time.Second},
		{"grace of a short period", []string{"TERMINATION_GRACE_PERIOD_SECONDS=10"}, func(c *Config) any { return c.Grace }, 9 * time.Second},
		{"grace of no period", []string{"TERMINATION_GRACE_PERIOD_SECONDS=0"}, func(c *Config) any { return c.Grace }, time.Second},
		{"grace set", []string{"TERMINATION_GRACE_PERIOD_SECONDS=30", "CONNECTION_TERMINATION_DEADLINE=7s"},
			func(c *Config) any { return c.Grace }, 7 * time.Second},
		{"drain limit", []string{"AMBIT_DRAIN_LIMIT=90s"}, func(c *Config) any { return c.DrainLimit }, 90 * time.Second},
		{"workers", []string{"ZTUNNEL_WORKER_THREADS=3"}, func(c *Config) any { return c.Processors }, 3},
		{"CPU limit", []string{"ZTUNNEL_CPU_LIMIT=500m"}, func(c *Config) any { return c.Processors }, 1},
		{"level", []string{"RUST_LOG=debug"}, func(c *Config) any { return c.LogFilter }, []telemetry.Directive{{Level: slog.LevelDebug}}},
		{"levels of targets", []string{"RUST_LOG=xds=trace,warn"}, func(c *Config) any { return c.LogFilter },
			[]telemetry.Directive{{Target: "xds", Level: slog.LevelDebug}, {Level: slog.LevelWarn}}},
		{"sampling", []string{"AMBIT_ACCESS_LOG_SAMPLING=0.25"}, func(c *Config) any { return c.AccessLogSampling }, 0.25},
		{"all is logged", nil, func(c *Config) any { return c.AccessLogSampling }, 1.0},
		{"level of the program", []string{"RUST_LOG=ztunnel=error"}, func(c *Config) any { return c.LogFilter }, []telemetry.Directive{{Level: slog.LevelError}}},
		{"JSON", []string{"LOG_FORMAT=json"}, func(c *Config) any { return c.LogJSON }, true},
		{"no keepalive", []string{"KEEPALIVE_ENABLED=false"}, func(c *Config) any { return c.KeepAlive.Enable }, false},
		{"user timeout", []string{"USER_TIMEOUT_ENABLED=true"}, func(c *Config) any { return c.UserTimeout }, 1800 * time.Second},
		{"metadata", []string{"ISTIO_META_A=b", `ISTIO_METAJSON_C={"d":[1]}`}, func(c *Config) any { return c.Node.Metadata },
			map[string]any{"A": "b", "C": map[string]any{"d": []any{1.0}}}},
		{"proxy config", []string{"PROXY_CONFIG={discoveryAddress: 'cp:1', proxyAdminPort: 5, statsPort: 6, concurrency: 2, proxyMetadata: {NETWORK: n}}"},
			func(c *Config) any {
				return []any{c.XDS.Address, c.AdminPort, c.StatsPort, c.Processors, c.Network}
			}, []any{"https://cp:1", uint16(5), uint16(6), 2, "n"}},
		{"environment over proxy config", []string{"PROXY_CONFIG={proxyMetadata: {NETWORK: n}}", "NETWORK=m"},
			func(c *Config) any { return c.Network }, "m"},
		{"node id", []string{"POD_NAME=p", "POD_NAMESPACE=ns", "INSTANCE_IP=10.0.0.9"},
			func(c *Config) any { return c.Node.ID() }, "ztunnel~10.0.0.9~p.ns~ns.svc.cluster.local"},
		{"revocation lists", []string{"CRL_PATH=/crl", "AMBIT_CRL_EXPIRED=refuse", "AMBIT_TRUST_BUNDLE=/roots"},
			func(c *Config) any { return []any{c.CRLPath, c.StrictCRL, c.TrustBundle} }, []any{"/crl", true, "/roots"}},
		{"post-quantum only", []string{"COMPLIANCE_POLICY=pqc"},
			func(c *Config) any { return []bool{c.PostQuantumOnly, c.XDS.PostQuantumOnly, c.CA.PostQuantumOnly} }, []bool{true, true, true}},
		{"DNS", nil, func(c *Config) any { return c.DNS }, true},
		{"no DNS", []string{"ISTIO_META_DNS_CAPTURE=false"}, func(c *Config) any { return c.DNS }, false},
		{"what is no setting is noted, but for what Kubernetes makes of a service", []string{"AMBIT_CONECT_TIMEOUT=1s", "AMBIT_WEB_SERVICE_HOST=10.0.0.1", "AMBIT_WEB_PORT_80_TCP=x"},
			func(c *Config) any { return c.Notes }, []string{"AMBIT_CONECT_TIMEOUT is no setting of this proxy and has no effect"}},
		{"another mark is noted", []string{"PACKET_MARK=7"}, func(c *Config) any { return len(c.Notes) }, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := Parse(tc.env)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, tc.value(c)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestMeshFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh")
	if err := os.WriteFile(path, []byte("defaultConfig:\n  discoveryAddress: from-file:1\n  statsPort: 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Parse([]string{"AMBIT_MESH_FILE=" + path, "PROXY_CONFIG={statsPort: 8}"})
	if err != nil {
		t.Fatal(err)
	}
	if c.XDS.Address != "https://from-file:1" || c.StatsPort != 8 {
		t.Errorf("address %s, stats port %d", c.XDS.Address, c.StatsPort)
	}
	if err := os.WriteFile(path, []byte("defaultConfig: ["), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Parse([]string{"AMBIT_MESH_FILE=" + path}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("broken file: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	for _, env := range []string{
		"PROXY_MODE=dedicated", "PROXY_MODE=other", "PROXY_WORKLOAD_INFO=a/b/c", "ENABLE_PROXY=false", "FAKE_CA=true",
		"LOCAL_XDS_PATH=/x", "LOCAL_XDS={}", "XDS_ON_DEMAND=true", "UNSTABLE_ENABLE_SOCKS5=true", "TLS12_ENABLED=true",
		"AMBIT_CRL_EXPIRED=maybe", "COMPLIANCE_POLICY=strict", "COMPLIANCE_POLICY=fips-140-3", "XDS_ADDRESS=", "CA_ADDRESS=", "PREFERED_SERVICE_NAMESPACE=x",
		"IPV6_ENABLED=maybe", "SECRET_TTL=1", "SECRET_TTL=1s", "PACKET_MARK=0", "PACKET_MARK=x", "RUST_LOG=loud",
		"AMBIT_ACCESS_LOG_SAMPLING=2", "AMBIT_ACCESS_LOG_SAMPLING=NaN", "AMBIT_METRICS_IDLE=1s", "AMBIT_STATE_MAX_AGE=0",
		"LOG_FORMAT=xml", "ZTUNNEL_WORKER_THREADS=-1", "ZTUNNEL_WORKER_THREADS=200%", "ZTUNNEL_CPU_LIMIT=lots",
		"HTTP2_FRAME_SIZE=1", "ISTIO_METAJSON_X={", "PROXY_CONFIG=[", "AMBIT_DRAIN_LIMIT=-1s", "AMBIT_MESH_FILE=/dev/null/x",
	} {
		t.Run(env, func(t *testing.T) {
			_, err := Parse([]string{env})
			name, _, _ := strings.Cut(env, "=")
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), name) && name != "AMBIT_MESH_FILE" {
				t.Errorf("error %q does not name the setting", err)
			}
		})
	}
	// All that is wrong is said at once.
	_, err := Parse([]string{"FAKE_CA=true", "LOG_FORMAT=xml"})
	if err == nil || !strings.Contains(err.Error(), "FAKE_CA") || !strings.Contains(err.Error(), "LOG_FORMAT") {
		t.Errorf("got %v", err)
	}
}

// TestDocumented: users are told of every setting, and of none that there is not.
func TestDocumented(t *testing.T) {
	pages := ""
	for _, page := range []string{"settings", "limits"} {
		text, err := os.ReadFile("../../docs/" + page + ".md")
		if err != nil {
			t.Fatal(err)
		}
		pages += string(text)
	}
	if from := strings.Index(pages, "\n## Waypoints\n"); from < 0 {
		t.Error("docs/settings.md has no part on waypoints, whose settings are theirs")
	} else {
		rest := pages[from+1:]
		pages = pages[:from] + rest[strings.Index(rest, "\n## ")+1:]
	}
	e, err := newEnv([]string{"XDS_ADDRESS=http://a", "CA_ADDRESS=http://a"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.parse(); err != nil {
		t.Fatal(err)
	}
	for name := range e.asked {
		if !strings.Contains(pages, "`"+name+"`") {
			t.Errorf("neither docs/settings.md nor docs/limits.md mentions %s", name)
		}
	}
	for _, name := range regexp.MustCompile("`(AMBIT_[A-Z_]+)`").FindAllStringSubmatch(pages, -1) {
		if !e.asked[name[1]] {
			t.Errorf("the pages tell of %s, which is no setting", name[1])
		}
	}
}
