package ztunnel

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// table writes rows under a header, aligned.
type table struct {
	w    *tabwriter.Writer
	rows int
}

func newTable(out io.Writer, columns ...string) *table {
	t := &table{tabwriter.NewWriter(out, 0, 8, 2, ' ', 0), -1}
	t.row(columns...)
	return t
}

func (t *table) row(cells ...string) {
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
	t.rows++
}

// end writes the table and returns how many rows it has.
func (t *table) end() (int, error) { return t.rows, t.w.Flush() }

// filter says what of a dump is shown; empty fields let everything pass.
type filter struct {
	namespace string // of the subject
	address   string // of workloads
	node      string // of workloads
	direction string // of connections: inbound or outbound
	pod       string // of connections: namespace/name
	raw       bool   // connections with addresses instead of names
}

// keep returns the elements that pass, sorted by the two names.
func keep[T any](all []record[T], pass func(*T) bool, namespace, name func(*T) string) []record[T] {
	out := []record[T]{}
	for i := range all {
		if pass(&all[i].Value) {
			out = append(out, all[i])
		}
	}
	slices.SortStableFunc(out, func(a, b record[T]) int {
		return cmp.Or(cmp.Compare(namespace(&a.Value), namespace(&b.Value)), cmp.Compare(name(&a.Value), name(&b.Value)))
	})
	return out
}

func (d *dump) workloads(f filter) []record[workload] {
	return keep(d.Workloads, func(w *workload) bool {
		return (f.namespace == "" || w.Namespace == f.namespace) && (f.node == "" || w.Node == f.node) &&
			(f.address == "" || slices.Contains(w.WorkloadIPs, f.address))
	}, func(w *workload) string { return w.Namespace }, func(w *workload) string { return w.Name })
}

func (d *dump) workloadTable(out io.Writer, f filter) (int, error) {
	t := newTable(out, "NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL")
	for _, r := range d.workloads(f) {
		w := &r.Value
		t.row(w.Namespace, w.Name, joined(w.WorkloadIPs), orNone(w.Node), d.waypointName(w.Waypoint), w.Protocol)
	}
	return t.end()
}

func (d *dump) services(f filter) []record[service] {
	return keep(d.Services, func(s *service) bool { return f.namespace == "" || s.Namespace == f.namespace },
		func(s *service) string { return s.Namespace }, func(s *service) string { return s.Name })
}

func (d *dump) serviceTable(out io.Writer, f filter) (int, error) {
	t := newTable(out, "NAMESPACE", "SERVICE NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS")
	for _, r := range d.services(f) {
		s := &r.Value
		healthy := 0
		for _, e := range s.Endpoints {
			if e.Status != "Unhealthy" {
				healthy++
			}
		}
		var vips []string
		for _, vip := range s.VIPs {
			vips = append(vips, address(vip))
		}
		t.row(s.Namespace, s.Name, joined(vips), d.waypointName(s.Waypoint), fmt.Sprintf("%d/%d", healthy, len(s.Endpoints)))
	}
	return t.end()
}

func (d *dump) policies(f filter) []record[policy] {
	return keep(d.Policies, func(p *policy) bool { return f.namespace == "" || p.Namespace == f.namespace },
		func(p *policy) string { return p.Namespace }, func(p *policy) string { return p.Name })
}

func (d *dump) policyTable(out io.Writer, f filter) (int, error) {
	t := newTable(out, "NAMESPACE", "POLICY NAME", "ACTION", "SCOPE")
	for _, r := range d.policies(f) {
		p := &r.Value
		t.row(orNone(p.Namespace), p.Name, p.Action, p.Scope)
	}
	return t.end()
}

func (d *dump) certificates() []record[certificate] {
	return keep(d.Certificates, func(*certificate) bool { return true },
		func(c *certificate) string { return c.Identity }, func(*certificate) string { return "" })
}

func (d *dump) certificateTable(out io.Writer, now time.Time) (int, error) {
	t := newTable(out, "CERTIFICATE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE")
	for _, r := range d.certificates() {
		c := &r.Value
		status, _, _ := strings.Cut(c.State, ":")
		row := func(kind string, x *x509) {
			t.row(c.Identity, kind, status, fmt.Sprint(x.valid(now)), orNA(x.serial()), orNA(x.ExpirationTime), orNA(x.ValidFrom))
		}
		if len(c.CertChain) == 0 {
			row("NA", &x509{})
			continue
		}
		for i := range c.CertChain {
			kind := "Intermediate"
			if i == 0 {
				kind = "Leaf"
			}
			row(kind, &c.CertChain[i])
		}
		for i := range c.RootCerts {
			row("Root", &c.RootCerts[i])
		}
	}
	return t.end()
}

func (x *x509) valid(now time.Time) bool {
	from, err := time.Parse(time.RFC3339, x.ValidFrom)
	if err != nil {
		return false
	}
	until, err := time.Parse(time.RFC3339, x.ExpirationTime)
	return err == nil && !now.Before(from) && now.Before(until)
}

// serial is the number in hexadecimal digits, as other tools show it.
func (x *x509) serial() string {
	n, ok := new(big.Int).SetString(x.SerialNumber, 10)
	if !ok {
		return x.SerialNumber
	}
	return n.Text(16)
}

// podConnections are the pods that pass, with all of their connections.
func (d *dump) podConnections(f filter) []record[pod] {
	out := []record[pod]{}
	for _, r := range d.pods() {
		i := &r.Value.Info
		if (f.namespace == "" || i.Namespace == f.namespace) && (f.pod == "" || i.Namespace+"/"+i.Name == f.pod) {
			out = append(out, r)
		}
	}
	return out
}

// connectionObjects is podConnections for -o, without the direction that does not pass.
func (d *dump) connectionObjects(f filter) ([]map[string]any, error) {
	out := []map[string]any{}
	for _, r := range d.podConnections(f) {
		object := map[string]any{}
		if err := json.Unmarshal(r.raw, &object); err != nil {
			return nil, err
		}
		if lists, ok := object["connections"].(map[string]any); ok && f.direction != "" {
			for direction := range lists {
				if direction != f.direction {
					delete(lists, direction)
				}
			}
		}
		out = append(out, object)
	}
	return out, nil
}

func (d *dump) connectionTable(out io.Writer, f filter) (int, error) {
	t := newTable(out, "WORKLOAD", "DIRECTION", "LOCAL", "REMOTE", "REMOTE TARGET", "PROTOCOL")
	names := map[string]string{}
	if !f.raw {
		names = d.names()
	}
	named := func(addr string) string {
		ip, port, err := net.SplitHostPort(addr)
		if name := names[ip]; err == nil && name != "" {
			return name + ":" + port
		}
		return addr
	}
	for _, r := range d.podConnections(f) {
		p := &r.Value
		workload := p.Info.Name + "." + p.Info.Namespace
		if f.direction != "outbound" {
			for _, r := range p.Connections.Inbound {
				c := &r.Value
				t.row(workload, "Inbound", named(c.ActualDst), named(c.Src), orDash(named(c.OriginalDst)), c.Protocol)
			}
		}
		if f.direction != "inbound" {
			for _, r := range p.Connections.Outbound {
				c := &r.Value
				t.row(workload, "Outbound", named(c.Src), named(c.ActualDst), orDash(named(c.OriginalDst)), c.Protocol)
			}
		}
	}
	return t.end()
}

func joined(all []string) string { return orNone(strings.Join(all, ",")) }

func orNone(s string) string { return cmp.Or(s, "None") }

func orDash(s string) string { return cmp.Or(s, "-") }

func orNA(s string) string { return cmp.Or(s, "NA") }
