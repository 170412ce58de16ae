package app

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/api/build"
	"github.com/ambit-mesh/ambit/mesh/directory"
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

// metricsMux serves metrics at both paths that scrapers know.
func metricsMux(metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.Handle("GET /stats/prometheus", metrics)
	return mux
}

// configDump is /config_dump, with the keys that istioctl reads.
type configDump struct {
	directory.Dump
	StagedServices map[string]any           `json:"stagedServices"`
	StaticConfig   map[string]any           `json:"staticConfig"`
	Version        map[string]string        `json:"version"`
	Config         map[string]any           `json:"config"`
	Certificates   []certificateDump        `json:"certificates"`
	WorkloadState  map[string]workloadState `json:"workloadState"`
	XDS            xdsDump                  `json:"xds"`
}

type xdsDump struct {
	Connected bool                         `json:"connected"`
	LastError string                       `json:"lastError,omitempty"`
	Rejected  map[string]map[string]string `json:"rejected,omitempty"`
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
	OriginalDst string `json:"originalDst"`
	ActualDst   string `json:"actualDst"`
	Protocol    string `json:"protocol"`

	SourceIdentity      string `json:"sourceIdentity,omitempty"`
	DestinationIdentity string `json:"destinationIdentity,omitempty"`
	BytesSent           uint64 `json:"bytesSent"`
	BytesReceived       uint64 `json:"bytesReceived"`
	Opened              string `json:"opened"`
}

// dump gathers /config_dump.
func (p *parts) dump() any {
	c := p.cfg
	status := p.discovery.Status()
	d := configDump{
		Dump:           p.directory.Dump(),
		StagedServices: map[string]any{},
		StaticConfig:   map[string]any{},
		Version:        map[string]string{"version": build.Version()},
		Config: map[string]any{
			"nodeName": c.Node.Name, "network": c.Network, "clusterId": c.ClusterID, "clusterDomain": c.ClusterDomain,
			"trustDomain": c.TrustDomain, "xdsAddress": c.XDS.Address, "caAddress": c.CA.Address,
			"xdsRootCert": c.XDS.RootCA, "caRootCert": c.CA.RootCA, "secretTtl": c.SecretTTL.String(),
			"inpodUds": c.ZDSSocket, "inpodPortReuse": c.PortReuse, "packetMark": c.PacketMark,
			"ipv6Enabled": c.IPv6, "originalSource": c.OriginalSource,
			"poolMaxStreamsPerConnection": c.PoolStreams, "poolUnusedReleaseTimeout": c.PoolIdle.String(),
			"windowSize": c.H2.StreamWindow, "connectionWindowSize": c.H2.ConnWindow, "frameSize": c.H2.MaxFrameSize,
			"selfTerminationDeadline": c.Grace.String(), "drainLimit": c.DrainLimit.String(),
		},
		Certificates:  certificates(p.certs.Snapshot()),
		WorkloadState: p.workloadStates(),
		XDS:           xdsDump{Connected: status.Connected, Rejected: status.Rejected},
	}
	if status.LastError != nil {
		d.XDS.LastError = status.LastError.Error()
	}
	return d
}

func (p *parts) workloadStates() map[string]workloadState {
	states := map[string]workloadState{}
	for _, s := range p.pods.Status() {
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
		states[s.Pod.UID] = state
	}
	return states
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
	return connectionDump{
		Src: c.Source.String(), OriginalDst: c.OriginalDestination.String(), ActualDst: c.ActualDestination.String(),
		Protocol:       protocol,
		SourceIdentity: c.SourceIdentity.String(), DestinationIdentity: c.DestinationIdentity.String(),
		BytesSent: c.Sent, BytesReceived: c.Received, Opened: c.Opened.UTC().Format(time.RFC3339Nano),
	}
}

// podConnections is one pod in /connections.
type podConnections struct {
	UID   string       `json:"uid"`
	Pod   workloadInfo `json:"pod"`
	State string       `json:"state"`
	connectionLists
}

// connections gathers /connections.
func (p *parts) connections() any {
	all := []podConnections{}
	states := p.workloadStates()
	for _, s := range p.pods.Status() {
		state := states[s.Pod.UID]
		all = append(all, podConnections{UID: s.Pod.UID, Pod: state.Info, State: state.State, connectionLists: state.Connections})
	}
	return all
}

func certificates(all []identity.Status) []certificateDump {
	dumps := []certificateDump{}
	for _, s := range all {
		d := certificateDump{Identity: s.Identity.String(), State: string(s.State), CertChain: []certDump{}, RootCerts: []certDump{}}
		if s.Err != nil {
			d.State += ": " + s.Err.Error()
		}
		if s.SVID != nil {
			d.CertChain = certDumps(s.SVID.ChainPEM)
			d.RootCerts = certDumps(s.SVID.RootsPEM)
		}
		dumps = append(dumps, d)
	}
	return dumps
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
