package ztunnel

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
)

// dump is a node proxy's /config_dump: what tables show of it. Both our proxy's and Istio's are read.
type dump struct {
	Workloads    []record[workload]    `json:"workloads"`
	Services     []record[service]     `json:"services"`
	Policies     []record[policy]      `json:"policies"`
	Certificates []record[certificate] `json:"certificates"`
	// Pods are those that the proxy serves, by uid.
	Pods map[string]record[pod] `json:"workloadState"`

	// others are the pods of further proxies. One that several proxies of its node serve has a record of each.
	others []record[pod]
	whole  json.RawMessage
}

// record is an element of a dump. As JSON or YAML it is what the proxy sent, fields included that are not known here.
type record[T any] struct {
	Value T
	raw   json.RawMessage
}

func (r *record[T]) UnmarshalJSON(text []byte) error {
	r.raw = slices.Clone(text)
	return json.Unmarshal(text, &r.Value)
}

func (r record[T]) MarshalJSON() ([]byte, error) { return r.raw, nil }

type workload struct {
	UID         string   `json:"uid"`
	Name        string   `json:"name"`
	Namespace   string   `json:"namespace"`
	WorkloadIPs []string `json:"workloadIps"`
	Node        string   `json:"node"`
	Protocol    string   `json:"protocol"`
	Waypoint    *gateway `json:"waypoint"`
}

// gateway is namespace/hostname or network/address.
type gateway struct {
	Destination string `json:"destination"`
}

type service struct {
	Name      string              `json:"name"`
	Namespace string              `json:"namespace"`
	Hostname  string              `json:"hostname"`
	VIPs      []string            `json:"vips"` // network/address
	Waypoint  *gateway            `json:"waypoint"`
	Endpoints map[string]endpoint `json:"endpoints"`
}

type endpoint struct {
	Status string `json:"status"`
}

type policy struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Scope     string `json:"scope"`
	Action    string `json:"action"`
	Invalid   string `json:"invalid"`
}

type certificate struct {
	Identity  string `json:"identity"`
	State     string `json:"state"`
	CertChain []x509 `json:"certChain"`
	RootCerts []x509 `json:"rootCerts"`
}

// x509 is one certificate; times are in RFC 3339, the number is decimal.
type x509 struct {
	SerialNumber   string `json:"serialNumber"`
	ValidFrom      string `json:"validFrom"`
	ExpirationTime string `json:"expirationTime"`
}

type pod struct {
	State       string      `json:"state"`
	Error       string      `json:"error"`
	Info        podInfo     `json:"info"`
	Connections connections `json:"connections"`
}

type podInfo struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

type connections struct {
	Inbound  []record[connection] `json:"inbound"`
	Outbound []record[connection] `json:"outbound"`
}

// connection: addresses are ip:port; the original destination of an inbound one is a host name, if known.
type connection struct {
	Src         string `json:"src"`
	OriginalDst string `json:"originalDst"`
	ActualDst   string `json:"actualDst"`
	Protocol    string `json:"protocol"`
}

// decode reads a dump. An element that it cannot make out is an error that says where.
func decode(text []byte) (*dump, error) {
	d := &dump{whole: text}
	err := json.Unmarshal(text, d)
	var syntax *json.SyntaxError
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &syntax) && syntax.Offset >= int64(len(text)):
		return nil, errors.New("it is cut off: take it again")
	case err != nil:
		return nil, fmt.Errorf("it is no config_dump of a ztunnel: %w", err)
	case d.Workloads == nil && d.Services == nil && d.Certificates == nil && d.Pods == nil:
		return nil, errors.New("it is no config_dump of a ztunnel: it has neither workloads nor services nor certificates")
	}
	return d, nil
}

// pods lists the pods, by namespace and name.
func (d *dump) pods() []record[pod] {
	all := make([]record[pod], 0, len(d.Pods)+len(d.others))
	for _, uid := range slices.Sorted(maps.Keys(d.Pods)) {
		all = append(all, d.Pods[uid])
	}
	all = append(all, d.others...)
	return slices.SortedStableFunc(slices.Values(all), func(a, b record[pod]) int {
		return cmp.Or(cmp.Compare(a.Value.Info.Namespace, b.Value.Info.Namespace), cmp.Compare(a.Value.Info.Name, b.Value.Info.Name))
	})
}

// waypointName is what a waypoint is called: its service's name, or its address.
func (d *dump) waypointName(g *gateway) string {
	if g == nil || g.Destination == "" {
		return "None"
	}
	namespace, host, _ := strings.Cut(g.Destination, "/")
	for i := range d.Services {
		s := &d.Services[i].Value
		if s.Namespace == namespace && s.Hostname == host || slices.Contains(s.VIPs, g.Destination) {
			return s.Name
		}
	}
	if net.ParseIP(host) != nil {
		return host
	}
	name, _, _ := strings.Cut(host, ".")
	return name
}

// names maps addresses to what a person calls them: a service's host name, or a workload as name.namespace.
func (d *dump) names() map[string]string {
	names := map[string]string{}
	for i := range d.Workloads {
		w := &d.Workloads[i].Value
		for _, ip := range w.WorkloadIPs {
			names[ip] = w.Name + "." + w.Namespace
		}
	}
	for i := range d.Services {
		s := &d.Services[i].Value
		for _, vip := range s.VIPs {
			names[address(vip)] = s.Hostname
		}
	}
	return names
}

// address is a network/address without the network.
func address(vip string) string {
	_, addr, found := strings.Cut(vip, "/")
	if !found {
		return vip
	}
	return addr
}
