package telemetry

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/mesh/directory"
	"github.com/ambit-mesh/ambit/mesh/identity"
)

// flagLabel is the one label that is not of a flow.
const flagLabel = "response_flags"

// labelNames are the labels of a flow, sorted, as the exposition wants them. They are Istio's.
var labelNames = [...]string{
	"connection_security_policy",
	"destination_app",
	"destination_canonical_revision",
	"destination_canonical_service",
	"destination_cluster",
	"destination_principal",
	"destination_region",
	"destination_service",
	"destination_service_name",
	"destination_service_namespace",
	"destination_version",
	"destination_workload",
	"destination_workload_namespace",
	"destination_zone",
	"reporter",
	"request_protocol",
	"source_app",
	"source_canonical_revision",
	"source_canonical_service",
	"source_cluster",
	"source_principal",
	"source_region",
	"source_version",
	"source_workload",
	"source_workload_namespace",
	"source_zone",
}

// Places in labelNames of what histograms are labelled with.
const (
	labelSecurity          = 0
	labelService           = 7
	labelWorkload          = 11
	labelWorkloadNamespace = 12
	labelReporter          = 14
)

// unknown stands for every value that is empty.
const unknown = "unknown"

// labels are the values of labelNames, in their order. They are comparable.
type labels [len(labelNames)]string

type (
	labelPair  = dto.LabelPair
	labelPairs = []*dto.LabelPair
)

// flagPairs are the pairs of flagLabel, by flag.
var flagPairs = func() (pairs [len(flags)]*labelPair) {
	for f, value := range flags {
		pairs[f] = &labelPair{Name: proto.String(flagLabel), Value: proto.String(value)}
	}
	return pairs
}()

func labelsOf(f *Flow) labels {
	security := unknown
	if f.MutualTLS {
		security = "mutual_tls"
	}
	src, dst := sideOf(f.Source, f.SourceIdentity), sideOf(f.Destination, f.DestinationIdentity)
	var service directory.Service
	if f.Service != nil {
		service = *f.Service
	}
	l := labels{
		security,
		dst.app, dst.revision, dst.app, dst.cluster, dst.principal, dst.region,
		service.Hostname, service.Name, service.Namespace,
		dst.revision, dst.workload, dst.namespace, dst.zone,
		f.Reporter.String(), "tcp",
		src.app, src.revision, src.app, src.cluster, src.principal, src.region,
		src.revision, src.workload, src.namespace, src.zone,
	}
	for i := range l {
		if l[i] == "" {
			l[i] = unknown
		}
	}
	return l
}

// side is what labels say of one end.
type side struct{ app, revision, cluster, principal, region, zone, workload, namespace string }

// sideOf names what is known. Without a workload the identity still tells the namespace.
func sideOf(w *directory.Workload, id identity.Identity) side {
	s := side{principal: id.String()}
	if w == nil {
		s.namespace = id.Namespace
		return s
	}
	s.app, s.revision, s.cluster = w.CanonicalName, w.CanonicalRevision, w.ClusterID
	s.region, s.zone = w.Locality.Region, w.Locality.Zone
	s.workload, s.namespace = w.WorkloadName, w.Namespace
	return s
}

func (l *labels) pairs() labelPairs {
	out := make(labelPairs, len(l))
	for i, name := range labelNames {
		out[i] = &labelPair{Name: proto.String(name), Value: proto.String(l[i])}
	}
	return out
}

// descriptions are of the metrics that Metrics exposes.
type descriptions struct {
	opened, closed, failed, sent, received, sockets *prometheus.Desc

	connect, firstByte *prometheus.Desc
}

func newDescriptions() descriptions {
	names := slices.Sorted(slices.Values(append(labelNames[:], flagLabel)))
	desc := func(name, help string) *prometheus.Desc { return prometheus.NewDesc(name, help, names, nil) }
	return descriptions{
		opened:   desc("istio_tcp_connections_opened_total", "TCP connections that were opened."),
		closed:   desc("istio_tcp_connections_closed_total", "TCP connections that were opened and have ended."),
		failed:   desc("istio_tcp_connections_failed_total", "TCP connections that could not be opened, or were refused."),
		sent:     desc("istio_tcp_sent_bytes_total", "Bytes of payload that the reporter's workload has sent."),
		received: desc("istio_tcp_received_bytes_total", "Bytes of payload that the reporter's workload has received."),
		sockets:  prometheus.NewDesc("istio_tcp_sockets_open", "TCP connections that are open now.", []string{"reporter"}, nil),
		connect: prometheus.NewDesc("ambit_tcp_connect_duration_seconds",
			"From the client's connection to the open way to the server: certificate, handshake and the server's answer included.", latencyNames[:], nil),
		firstByte: prometheus.NewDesc("ambit_tcp_first_byte_duration_seconds",
			"From the opened connection to the first byte of the server's payload.", latencyNames[:], nil),
	}
}

// counter is one value of one series at a scrape. Its labels are shared and never changed.
type counter struct {
	desc  *prometheus.Desc
	pairs labelPairs
	value uint64
}

func (c *counter) Desc() *prometheus.Desc { return c.desc }

func (c *counter) Write(m *dto.Metric) error {
	m.Label = c.pairs
	m.Counter = &dto.Counter{Value: proto.Float64(float64(c.value))}
	return nil
}
