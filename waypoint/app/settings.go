package app

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"go.opentelemetry.io/otel/attribute"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/build"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

// Defaults of settings.
const (
	defaultRootCA = "/var/run/secrets/istio/root-cert.pem"
	defaultToken  = "/var/run/secrets/tokens/istio-token"
	defaultTTL    = 24 * time.Hour
	// defaultPeriod is what Kubernetes gives a pod to end.
	defaultPeriod = 30 * time.Second
	// reserve is how much of that period is left for what comes after the connections.
	reserve = 5 * time.Second
	// gatewayLabel names the Gateway that a waypoint belongs to.
	gatewayLabel = "gateway.networking.k8s.io/gateway-name"
)

// settings are what the environment says.
type settings struct {
	PodName, PodNamespace, ServiceAccount, InstanceIP, NodeName string
	// Gateway is the name of the Gateway that this waypoint belongs to.
	Gateway                               string
	ClusterID, ClusterDomain, TrustDomain string
	Metadata                              map[string]any // further fields of the node, for the control plane

	XDS, CA     identity.ChannelConfig
	SecretTTL   time.Duration
	TrustBundle string
	// CRLPath is a file of revocation lists; empty for none. StrictCRL refuses certificates whose issuer's list is out of date.
	CRLPath   string
	StrictCRL bool
	// ResolvConf names the resolvers of backends that are host names.
	ResolvConf string

	// Grace is how long connections go on after SIGTERM, Leave how long of that new ones are taken.
	Grace, Leave time.Duration

	LogFilter []telemetry.Directive
	LogJSON   bool
	Sampling  float64
}

// identity is the waypoint's own.
func (s *settings) identity() identity.Identity {
	return identity.Identity{TrustDomain: s.TrustDomain, Namespace: s.PodNamespace, ServiceAccount: s.ServiceAccount}
}

// env reads typed values out of an environment and gathers what is wrong.
type env struct {
	vars  map[string]string
	asked map[string]bool
	errs  []error
}

// parseSettings reads an environment of the form of os.Environ. Its error joins all that is wrong; notes are remarks for the log.
func parseSettings(environ []string) (_ *settings, notes []string, _ error) {
	e := newEnv(environ)
	s := e.parse()
	if len(e.errs) > 0 {
		return nil, nil, fmt.Errorf("settings: %w", errors.Join(e.errs...))
	}
	return s, e.unknown(), nil
}

func newEnv(environ []string) *env {
	e := &env{vars: map[string]string{}, asked: map[string]bool{}}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		e.vars[name] = value
	}
	return e
}

// parse reads all settings. They are of use only if nothing was found to be wrong.
func (e *env) parse() *settings {
	s := &settings{
		PodName: e.required("POD_NAME"), PodNamespace: e.required("POD_NAMESPACE"), ServiceAccount: e.required("SERVICE_ACCOUNT"),
		InstanceIP: e.text("INSTANCE_IP", ""), NodeName: e.text("NODE_NAME", ""),
		ClusterID:     e.text("CLUSTER_ID", e.text("ISTIO_META_CLUSTER_ID", api.DefaultClusterID)),
		ClusterDomain: e.text("CLUSTER_DOMAIN", api.DefaultClusterDomain),
		TrustDomain:   e.text("TRUST_DOMAIN", api.DefaultTrustDomain),
		Metadata:      e.metadata(),
		SecretTTL:     e.duration("SECRET_TTL", defaultTTL, time.Minute),
		TrustBundle:   e.text("AMBIT_TRUST_BUNDLE", defaultRootCA),
		CRLPath:       e.text("CRL_PATH", ""),
		ResolvConf:    e.text("AMBIT_RESOLV_CONF", "/etc/resolv.conf"),
		StrictCRL:     e.choice("AMBIT_CRL_EXPIRED", "enforce", "refuse") == "refuse",
		Leave:         e.duration("MINIMUM_DRAIN_DURATION", 0, 0),
		LogJSON:       e.choice("LOG_FORMAT", "plain", "json") == "json",
		Sampling:      e.share("AMBIT_ACCESS_LOG_SAMPLING", 0),
	}
	// The Deployment of a waypoint has the name of its Gateway, unless the pod's labels say otherwise.
	s.Gateway = cmp.Or(e.text("AMBIT_GATEWAY", ""), e.text("ISTIO_META_WORKLOAD_NAME", ""), s.ServiceAccount)
	period := time.Duration(e.integer("TERMINATION_GRACE_PERIOD_SECONDS", int(defaultPeriod/time.Second))) * time.Second
	s.Grace = e.duration("TERMINATION_DRAIN_DURATION", max(period-reserve, period/2), 0)
	var err error
	if s.LogFilter, err = telemetry.ParseFilter(e.text("AMBIT_LOG", "")); err != nil {
		e.fail("AMBIT_LOG", "%v", err)
	}
	s.XDS, s.CA = e.channel("XDS", s), e.channel("CA", s)
	if err := s.identity().Validate(); err != nil && len(e.errs) == 0 {
		e.errs = append(e.errs, fmt.Errorf("TRUST_DOMAIN, POD_NAMESPACE, SERVICE_ACCOUNT: %w", err))
	}
	return s
}

// channel reads the settings of the channel to the control plane, or to the CA.
func (e *env) channel(kind string, s *settings) identity.ChannelConfig {
	ch := identity.ChannelConfig{
		Address: e.text(kind+"_ADDRESS", fmt.Sprintf("https://%s.%s.svc:%d", api.ControlPlaneService, api.DefaultNamespace, api.PortControlPlane)),
		RootCA:  e.text(kind+"_ROOT_CA", defaultRootCA), ServerName: e.text("ALT_"+kind+"_HOSTNAME", ""),
		TokenFile: e.text("AUTH_TOKEN", defaultToken), Headers: map[string]string{"clusterid": s.ClusterID},
	}
	if ch.TokenFile == "off" {
		ch.TokenFile = ""
	}
	return ch
}

// node introduces the waypoint to the control plane, as Istio's do.
func (s *settings) node() (*corev3.Node, error) {
	fields := map[string]any{
		"NAME": s.PodName, "NAMESPACE": s.PodNamespace, "SERVICE_ACCOUNT": s.ServiceAccount, "CLUSTER_ID": s.ClusterID,
		"NODE_NAME": s.NodeName, "INSTANCE_IPS": s.InstanceIP,
	}
	maps.Copy(fields, s.Metadata)
	labels, _ := fields["LABELS"].(map[string]any)
	if labels == nil {
		labels = map[string]any{}
	}
	if labels[gatewayLabel] == nil {
		labels[gatewayLabel] = s.Gateway
	}
	fields["LABELS"] = labels
	metadata, err := structpb.NewStruct(fields)
	if err != nil {
		return nil, fmt.Errorf("node metadata: %w", err)
	}
	return &corev3.Node{Id: fmt.Sprintf("waypoint~%s~%s.%s~%s.svc.%s",
		cmp.Or(s.InstanceIP, "1.1.1.1"), s.PodName, s.PodNamespace, s.PodNamespace, s.ClusterDomain), Metadata: metadata}, nil
}

// baggage describes the waypoint to backends' proxies (W3C Baggage, with Istio's keys).
func (s *settings) baggage() string {
	return fmt.Sprintf("k8s.cluster.name=%s,k8s.namespace.name=%s,k8s.deployment.name=%s,service.name=%s,service.version=latest",
		s.ClusterID, s.PodNamespace, s.Gateway, s.Gateway)
}

// resource describes the waypoint in spans: by OpenTelemetry's conventions, and as Istio's proxies do.
func (s *settings) resource() []attribute.KeyValue {
	var out []attribute.KeyValue
	for _, a := range [...]struct{ name, value string }{
		{"service.version", build.Version()}, {"k8s.namespace.name", s.PodNamespace}, {"k8s.pod.name", s.PodName}, {"k8s.pod.ip", s.InstanceIP}, {"k8s.node.name", s.NodeName},
		{"k8s.cluster.name", s.ClusterID}, {"istio.canonical_service", s.Gateway}, {"istio.canonical_revision", "latest"}, {"istio.namespace", s.PodNamespace},
		{"istio.cluster_id", s.ClusterID}, {"istio.mesh_id", s.TrustDomain},
	} {
		if a.value != "" {
			out = append(out, attribute.String(a.name, a.value))
		}
	}
	return out
}

func (e *env) fail(name, format string, args ...any) {
	e.errs = append(e.errs, errors.New(name+": "+fmt.Sprintf(format, args...)))
}

func (e *env) text(name, fallback string) string {
	e.asked[name] = true
	return cmp.Or(e.vars[name], fallback)
}

func (e *env) required(name string) string {
	v := e.text(name, "")
	if v == "" {
		e.fail(name, "is not set; the control plane sets it in the pods that it makes of Gateways")
	}
	return v
}

func (e *env) choice(name, fallback, other string) string {
	v := strings.ToLower(e.text(name, fallback))
	if v != fallback && v != other {
		e.fail(name, "%q is neither %s nor %s", e.vars[name], fallback, other)
	}
	return v
}

func (e *env) integer(name string, fallback int) int {
	v := e.text(name, "")
	if v == "" {
		return fallback
	}
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		e.fail(name, "%q is not a whole number", v)
	}
	return int(n)
}

func (e *env) duration(name string, fallback, lowest time.Duration) time.Duration {
	v := e.text(name, "")
	if v == "" {
		return fallback
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < lowest {
		e.fail(name, "%q is not a duration of at least %v, such as 90s or 5m", v, lowest)
	}
	return d
}

// share reads a number from 0 to 1.
func (e *env) share(name string, fallback float64) float64 {
	v := e.text(name, "")
	if v == "" {
		return fallback
	}
	f, err := strconv.ParseFloat(v, 64)
	if err != nil || !(f >= 0 && f <= 1) {
		e.fail(name, "%q is not a number from 0 to 1", v)
	}
	return f
}

// metadata gathers ISTIO_META_* (texts) and ISTIO_METAJSON_* (JSON) for the control plane.
func (e *env) metadata() map[string]any {
	m := map[string]any{}
	for name, value := range e.vars {
		if key, ok := strings.CutPrefix(name, "ISTIO_META_"); ok {
			m[key] = value
		}
		if key, ok := strings.CutPrefix(name, "ISTIO_METAJSON_"); ok {
			var decoded any
			if err := json.Unmarshal([]byte(value), &decoded); err != nil {
				e.fail(name, "not JSON: %v", err)
				continue
			}
			m[key] = decoded
		}
	}
	return m
}

// unknown says which variables look like settings of ours and are none. Those that Kubernetes makes of services' names are
// passed over.
func (e *env) unknown() (notes []string) {
	for _, name := range slices.Sorted(maps.Keys(e.vars)) {
		if strings.HasPrefix(name, "AMBIT_") && !e.asked[name] && !strings.Contains(name, "_SERVICE_") && !strings.Contains(name, "_PORT") {
			notes = append(notes, name+" is no setting of this program and has no effect")
		}
	}
	return notes
}
