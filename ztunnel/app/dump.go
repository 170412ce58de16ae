package app

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/api/build"
	"github.com/ambit-mesh/ambit/mesh/admin"
	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/ztunnel/config"
	"github.com/ambit-mesh/ambit/ztunnel/inpod"
	"github.com/ambit-mesh/ambit/ztunnel/proxy"
)

// xdsNode introduces the proxy to the control plane, in Istio's form.
func xdsNode(n config.Node) (*corev3.Node, error) {
	fields := map[string]any{
		"NAME":         n.PodName,
		"NAMESPACE":    n.PodNamespace,
		"INSTANCE_IPS": n.InstanceIP,
		"NODE_NAME":    n.Name,
	}
	for k, v := range n.Metadata {
		fields[k] = v
	}
	metadata, err := structpb.NewStruct(fields)
	if err != nil {
		return nil, fmt.Errorf("node metadata: %w", err)
	}
	return &corev3.Node{Id: n.ID(), Metadata: metadata}, nil
}

type xdsDump struct {
	Connected bool   `json:"connected"`
	LastError string `json:"lastError,omitempty"`
	// Age is how long the control plane has been away, and FromDisk that it has not answered since the start.
	Age      string                       `json:"age,omitempty"`
	FromDisk bool                         `json:"fromDisk,omitempty"`
	Rejected map[string]map[string]string `json:"rejected,omitempty"`
}

type certificateDump struct {
	Identity  string     `json:"identity"`
	State     string     `json:"state"`
	CertChain []certDump `json:"certChain"`
	RootCerts []certDump `json:"rootCerts"`
}

type certDump struct {
	PEM            string `json:"pem"` // base64
	SerialNumber   string `json:"serialNumber"`
	ValidFrom      string `json:"validFrom"`
	ExpirationTime string `json:"expirationTime"`
}

type workloadState struct {
	State       string          `json:"state"`
	Error       string          `json:"error,omitempty"`
	Info        workloadInfo    `json:"info"`
	NetNS       string          `json:"netns"`
	Connections connectionLists `json:"connections"`
}

type workloadInfo struct {
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

type connectionLists struct {
	Inbound  []connectionDump `json:"inbound"`
	Outbound []connectionDump `json:"outbound"`
}

type connectionDump struct {
	Src         string `json:"src"`
	OriginalDst string `json:"originalDst,omitempty"` // of an inbound connection the service's host name, if known
	ActualDst   string `json:"actualDst"`
	Protocol    string `json:"protocol"`

	SourceIdentity      string `json:"sourceIdentity,omitempty"`
	DestinationIdentity string `json:"destinationIdentity,omitempty"`
	BytesSent           uint64 `json:"bytesSent"`
	BytesReceived       uint64 `json:"bytesReceived"`
	Opened              string `json:"opened"`
}

// dump writes /config_dump, with the keys that istioctl reads.
func (p *parts) dump(w io.Writer) error {
	c := p.cfg
	d := admin.NewStream(w)
	admin.List(d, "workloads", p.directory.DumpWorkloads())
	admin.List(d, "services", p.directory.DumpServices())
	admin.List(d, "policies", p.directory.DumpPolicies())
	d.Member("stagedServices", struct{}{})
	d.Member("staticConfig", struct{}{})
	d.Member("version", map[string]string{"version": build.Version()})
	d.Member("config", map[string]any{
		"nodeName": c.Node.Name, "network": c.Network, "clusterId": c.ClusterID, "clusterDomain": c.ClusterDomain,
		"trustDomain": c.TrustDomain, "xdsAddress": c.XDS.Address, "caAddress": c.CA.Address,
		"xdsRootCert": c.XDS.RootCA, "caRootCert": c.CA.RootCA, "secretTtl": c.SecretTTL.String(),
		"inpodUds": c.ZDSSocket, "inpodPortReuse": c.PortReuse, "packetMark": c.PacketMark,
		"ipv6Enabled": c.IPv6, "originalSource": c.OriginalSource,
		"poolMaxStreamsPerConnection": c.PoolStreams, "poolUnusedReleaseTimeout": c.PoolIdle.String(),
		"windowSize": c.H2.StreamWindow, "connectionWindowSize": c.H2.ConnWindow, "frameSize": c.H2.MaxFrameSize,
		"selfTerminationDeadline": c.Grace.String(), "drainLimit": c.DrainLimit.String(),
		"accessLogSampling": c.AccessLogSampling, "metricsIdle": c.MetricsIdle.String(),
	})
	admin.List(d, "certificates", certificates(p.certs.Snapshot()))
	admin.Map(d, "workloadState", p.workloadStates())
	d.Member("xds", p.xdsState())
	return d.Close()
}

func (p *parts) xdsState() xdsDump {
	status := p.discovery.Status()
	d := xdsDump{Connected: status.Connected, Rejected: status.Rejected}
	if !status.Connected && p.state.contact.Load() != 0 {
		d.Age, d.FromDisk = p.state.age().String(), p.state.fromDisk.Load()
	}
	if status.LastError != nil {
		d.LastError = status.LastError.Error()
	}
	return d
}

// workloadStates shows the pods, by uid.
func (p *parts) workloadStates() iter.Seq2[string, workloadState] {
	return func(yield func(string, workloadState) bool) {
		for _, s := range p.pods.Status() {
			if !yield(s.Pod.UID, stateOf(s)) {
				return
			}
		}
	}
}

func stateOf(s inpod.Status) workloadState {
	state := workloadState{
		State: string(s.State), Error: s.Err, NetNS: s.NetNS.String(),
		Info:        workloadInfo{Name: s.Pod.Name, Namespace: s.Pod.Namespace, ServiceAccount: s.Pod.ServiceAccount},
		Connections: connectionLists{Inbound: []connectionDump{}, Outbound: []connectionDump{}},
	}
	for _, c := range connectionsOf(s) {
		list := &state.Connections.Outbound
		if c.Inbound {
			list = &state.Connections.Inbound
		}
		*list = append(*list, dumpConnection(c))
	}
	return state
}

func connectionsOf(s inpod.Status) []proxy.Connection {
	pod, ok := s.Proxy.(*proxy.Pod)
	if !ok {
		return nil
	}
	return pod.Connections()
}

func dumpConnection(c proxy.Connection) connectionDump {
	protocol := "TCP"
	if c.Tunnel {
		protocol = "HBONE"
	}
	original := c.OriginalDestination.String()
	if c.Inbound {
		original = c.Service
	}
	return connectionDump{
		Src: c.Source.String(), OriginalDst: original, ActualDst: c.ActualDestination.String(),
		Protocol:       protocol,
		SourceIdentity: c.SourceIdentity.String(), DestinationIdentity: c.DestinationIdentity.String(),
		BytesSent: c.Sent, BytesReceived: c.Received, Opened: c.Opened.UTC().Format(time.RFC3339Nano),
	}
}

// connections writes /connections: the pods' states, by uid.
func (p *parts) connections(w io.Writer) error {
	d := admin.NewStream(w)
	admin.Map(d, "workloadState", p.workloadStates())
	return d.Close()
}

func certificates(all []identity.Status) iter.Seq[certificateDump] {
	return func(yield func(certificateDump) bool) {
		for _, s := range all {
			d := certificateDump{Identity: s.Identity.String(), State: string(s.State), CertChain: []certDump{}, RootCerts: []certDump{}}
			if s.Err != nil {
				d.State += ": " + s.Err.Error()
			}
			if s.SVID != nil {
				d.CertChain = certDumps(s.SVID.ChainPEM)
				d.RootCerts = certDumps(s.SVID.RootsPEM)
			}
			if !yield(d) {
				return
			}
		}
	}
}

// missingDiscovery tells why the control plane's state is not known yet, for readiness.
func (p *parts) missingDiscovery() string {
	state := p.xdsState()
	switch {
	case state.LastError != "":
		return state.LastError
	case state.Connected:
		return "connected, waiting for its first answers"
	}
	return ""
}

// pendingPods names pods that are not served yet, for readiness.
func (p *parts) pendingPods() string {
	if !p.pods.Connected() {
		return "not connected to the CNI agent at " + p.cfg.ZDSSocket
	}
	const most = 5
	var names []string
	pending := 0
	for _, s := range p.pods.Status() {
		if s.State != inpod.StatePending {
			continue
		}
		if pending++; pending <= most {
			names = append(names, s.Pod.String()+": "+s.Err)
		}
	}
	if pending > most {
		names = append(names, fmt.Sprintf("and %d more", pending-most))
	}
	return strings.Join(names, "; ")
}

// certDumps describes each certificate of a PEM text.
func certDumps(text []byte) []certDump {
	dumps := []certDump{}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return dumps
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			continue // an SVID holds none that does not parse
		}
		dumps = append(dumps, certDump{
			PEM:            base64.StdEncoding.EncodeToString([]byte(strings.TrimSpace(string(pem.EncodeToMemory(block))))),
			SerialNumber:   c.SerialNumber.String(),
			ValidFrom:      c.NotBefore.UTC().Format(time.RFC3339),
			ExpirationTime: c.NotAfter.UTC().Format(time.RFC3339),
		})
	}
}
