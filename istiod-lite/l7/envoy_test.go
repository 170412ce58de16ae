package l7_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	internalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/bootstrap/internal_listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster/clustertest"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
)

// envoy is the program that scripts/envoy installs.
const envoy = "../../.cache/bin/envoy"

// TestEnvoyAccepts: a stock Envoy takes what the stories become, all in one configuration, each in a cluster domain of its own.
// Validation cannot ask for what is dynamic, so route tables and endpoints stand where their names would: rds is replaced by the
// table, eds by the endpoints. The certificates of the cluster that makes tunnels are there too: validation ends in a crash where a
// cluster gets them by ads. All else is as it is sent.
func TestEnvoyAccepts(t *testing.T) {
	needEnvoy(t)
	if output, err := validate(t, everything(t)); err != nil {
		t.Errorf("Envoy refuses it: %v\n%s", err, output)
	}
}

// TestEnvoyRefuses: the test above would notice, also in a route table.
func TestEnvoyRefuses(t *testing.T) {
	needEnvoy(t)
	s := stories(t)["testdata/matches.txtar"]
	for _, r := range s.config.Routes[0].VirtualHosts[0].Routes {
		if e := r.GetMatch().GetSafeRegex(); e != nil {
			e.Regex = "("
		}
	}
	b := bootstrap(t)
	fill(t, b, "", s.config)
	if output, err := validate(t, b); err == nil || !strings.Contains(output, "missing )") {
		t.Errorf("Envoy takes an expression that cannot be one: %v\n%s", err, output)
	}
}

func needEnvoy(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(envoy); errors.Is(err, fs.ErrNotExist) {
		if os.Getenv("CI") != "" {
			t.Fatal("there is no Envoy: scripts/envoy installs it")
		}
		t.Skip("there is no Envoy: scripts/envoy installs it, with a network")
	}
}

// everything is a configuration that has all stories in it. What all waypoints have in common is there once.
func everything(t *testing.T) *bootstrapv3.Bootstrap {
	t.Helper()
	b := bootstrap(t)
	for name, s := range stories(t) {
		name = strings.TrimSuffix(filepath.Base(name), ".txtar")
		own := s.settings(t, name+".example")
		c := l7.All(clustertest.Snapshot(own, s.objects))
		if len(b.StaticResources.Listeners) > 0 {
			isStatic := func(name string) bool {
				return name == l7.ListenerTerminate || name == l7.ListenerOriginate || name == l7.ListenerMain
			}
			c.Listeners = slices.DeleteFunc(c.Listeners, func(l *listenerv3.Listener) bool { return isStatic(l.Name) && l.Name != l7.ListenerMain })
			c.Clusters = slices.DeleteFunc(c.Clusters, func(c *clusterv3.Cluster) bool { return isStatic(c.Name) })
		}
		fill(t, b, "_"+name, c)
	}
	return b
}

func validate(t *testing.T, b *bootstrapv3.Bootstrap) (string, error) {
	t.Helper()
	text, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "envoy.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	output, err := exec.CommandContext(ctx, envoy, "--mode", "validate", "-c", file, "--concurrency", "1", "-l", "warning").CombinedOutput()
	return string(output), err
}

func packed(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	out, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// bootstrap is a configuration of Envoy that has nothing in it yet.
func bootstrap(t *testing.T) *bootstrapv3.Bootstrap {
	t.Helper()
	const server = "control-plane"
	return &bootstrapv3.Bootstrap{
		Node: &corev3.Node{Id: "waypoint~10.0.0.1~w.ns~ns.svc.cluster.local", Cluster: "w.ns"},
		BootstrapExtensions: []*corev3.TypedExtensionConfig{{
			Name: "envoy.bootstrap.internal_listener", TypedConfig: packed(t, &internalv3.InternalListener{}),
		}},
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{AdsConfig: &corev3.ApiConfigSource{
			ApiType: corev3.ApiConfigSource_DELTA_GRPC, TransportApiVersion: corev3.ApiVersion_V3,
			GrpcServices: []*corev3.GrpcService{{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: server}}}},
		}},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{Secrets: secrets(t), Clusters: []*clusterv3.Cluster{{
			Name: server, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
			TypedExtensionProtocolOptions: map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": packed(t, &httpv3.HttpProtocolOptions{
				UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
					ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{}}},
			})},
		}}},
	}
}

// fill adds what a waypoint is told. Suffix is added to the name of the listener that is each waypoint's own.
func fill(t *testing.T, out *bootstrapv3.Bootstrap, suffix string, c l7.Config) {
	t.Helper()
	for _, l := range c.Listeners {
		l = proto.CloneOf(l)
		if l.Name == l7.ListenerMain {
			l.Name += suffix
		}
		for _, chain := range l.FilterChains {
			inlineRoutes(t, chain, c)
		}
		out.StaticResources.Listeners = append(out.StaticResources.Listeners, l)
	}
	for _, cl := range c.Clusters {
		cl = proto.CloneOf(cl)
		if cl.GetType() == clusterv3.Cluster_EDS {
			cl.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
			cl.EdsClusterConfig = nil
			for _, e := range c.LoadAssignments {
				if e.ClusterName == cl.Name {
					cl.LoadAssignment = e
				}
			}
			if cl.LoadAssignment == nil {
				t.Errorf("cluster %s has no endpoints", cl.Name)
			}
		}
		if cl.GetTransportSocket().GetTypedConfig().MessageIs(&tlsv3.UpstreamTlsContext{}) {
			staticSecrets(t, cl)
		}
		out.StaticResources.Clusters = append(out.StaticResources.Clusters, cl)
	}
}

// staticSecrets makes a cluster take its certificates from the bootstrap's.
func staticSecrets(t *testing.T, c *clusterv3.Cluster) {
	t.Helper()
	var settings tlsv3.UpstreamTlsContext
	if err := c.TransportSocket.GetTypedConfig().UnmarshalTo(&settings); err != nil {
		t.Fatal(err)
	}
	common := settings.CommonTlsContext
	common.TlsCertificateSdsSecretConfigs[0].SdsConfig = nil
	common.GetCombinedValidationContext().ValidationContextSdsSecretConfig.SdsConfig = nil
	c.TransportSocket.ConfigType = &corev3.TransportSocket_TypedConfig{TypedConfig: packed(t, &settings)}
}

// secrets are a certificate that vouches for itself, under the names that tunnels ask for.
func secrets(t *testing.T) []*tlsv3.Secret {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	inline := func(typ string, body []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: body})}}
	}
	return []*tlsv3.Secret{
		{Name: "default", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline("CERTIFICATE", certificate), PrivateKey: inline("PRIVATE KEY", private)}}},
		{Name: "ROOTCA", Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: inline("CERTIFICATE", certificate)}}},
	}
}

// inlineRoutes puts the route table that a chain names in the place of its name.
func inlineRoutes(t *testing.T, chain *listenerv3.FilterChain, c l7.Config) {
	t.Helper()
	for _, f := range chain.Filters {
		var manager hcmv3.HttpConnectionManager
		if !f.GetTypedConfig().MessageIs(&manager) {
			continue
		}
		if err := f.GetTypedConfig().UnmarshalTo(&manager); err != nil {
			t.Fatal(err)
		}
		if manager.GetRds() == nil {
			continue
		}
		name := manager.GetRds().GetRouteConfigName()
		found := false
		for _, r := range c.Routes {
			if r.Name == name {
				manager.RouteSpecifier, found = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: r}, true
			}
		}
		if !found {
			t.Errorf("there is no route table %s", name)
		}
		f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: packed(t, &manager)}
	}
}
