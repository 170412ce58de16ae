package directory

import (
	"context"
	"log/slog"
	"net/netip"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/ambit-mesh/ambit/mesh/policy"
	"github.com/ambit-mesh/ambit/mesh/xds"
)

// Config configures a Directory.
type Config struct {
	// Network is the network of this proxy; empty for the default one.
	Network string
	// Node is the node of this proxy. Workloads of it are those that WorkloadByPod and WaitForPod find, and whose coming
	// and going Change.Local tells. Empty: all workloads count as local.
	Node string
	// ClusterID is the cluster of this proxy, which local workloads must be of. Empty: any.
	ClusterID string
	// Logger takes what is odd but not rejected. Required.
	Logger *slog.Logger
}

// Directory holds what is known. Look-ups may be called concurrently with each other and with updates.
type Directory struct{}

// New makes an empty Directory.
func New(cfg Config) *Directory { panic("unwritten") }

// HandleAddresses takes workloads and services; it fits xds.Handler.Apply for xds.TypeAddress.
func (d *Directory) HandleAddresses(upserts []*discoveryv3.Resource, removed []string) []xds.Rejection {
	panic("unwritten")
}

// HandleAuthorizations takes policies; it fits xds.Handler.Apply for xds.TypeAuthorization.
func (d *Directory) HandleAuthorizations(upserts []*discoveryv3.Resource, removed []string) []xds.Rejection {
	panic("unwritten")
}

// Workload returns the workload with this uid, or nil.
func (d *Directory) Workload(uid string) *Workload { panic("unwritten") }

// WorkloadByAddr returns the workload with this address, or nil. Of several, pods come before others, then those that
// speak HBONE, then the one that came last.
func (d *Directory) WorkloadByAddr(network string, addr netip.Addr) *Workload { panic("unwritten") }

// WorkloadByPod returns the local pod of that name, namespace and service account, or nil.
func (d *Directory) WorkloadByPod(namespace, name, serviceAccount string) *Workload {
	panic("unwritten")
}

// WaitForPod returns WorkloadByPod as soon as there is one, or an error when ctx ends before.
func (d *Directory) WaitForPod(ctx context.Context, namespace, name, serviceAccount string) (*Workload, error) {
	panic("unwritten")
}

// Service returns the service with this key, or nil.
func (d *Directory) Service(key ServiceKey) *Service { panic("unwritten") }

// ServiceByAddr returns the service with this virtual address, or nil, for a client in namespace. Of several with the
// same address, one of that namespace comes first, then the canonical one, then the oldest; a range counts only if no
// service has the address itself, and the longest prefix comes first. Services that the client does not see are left out.
func (d *Directory) ServiceByAddr(network string, addr netip.Addr, namespace string) *Service {
	panic("unwritten")
}

// ServiceByHost returns the service with this host name, or nil; among several it chooses as ServiceByAddr does.
func (d *Directory) ServiceByHost(hostname, namespace string) *Service { panic("unwritten") }

// Endpoints calls yield for each workload of a service, in no order, until it returns false.
func (d *Directory) Endpoints(key ServiceKey) func(yield func(*Workload) bool) { panic("unwritten") }

// Policies returns the policies that apply to w as they are now.
func (d *Directory) Policies(w *Workload) policy.Set { panic("unwritten") }

// Change tells what one push has changed. Its slices must not be kept longer than the call.
type Change struct {
	// Workloads and Services that were added, changed or removed.
	Workloads []WorkloadChange
	Services  []ServiceChange
	// Policies are the keys of policies that were added, changed or removed.
	Policies []string
}

// WorkloadChange is one workload's: Old is nil for a new one, New for a removed one.
type WorkloadChange struct {
	Old, New *Workload
	// Local: it is, or was, a workload of this node.
	Local bool
}

// ServiceChange is one service's: Old is nil for a new one, New for a removed one.
type ServiceChange struct{ Old, New *Service }

// Subscribe has f called after each push that changed something, once look-ups see it, from the goroutine that applies
// pushes; f must not block and must not apply pushes itself. cancel ends it; a call that runs already may still end after cancel.
func (d *Directory) Subscribe(f func(Change)) (cancel func()) { panic("unwritten") }

// Dump returns everything in the shape of ztunnel's config_dump, to be encoded as JSON. It does not stop updates, so the
// parts may be of slightly different moments.
func (d *Directory) Dump() Dump { panic("unwritten") }

// Dump is the part of a config_dump that comes from discovery.
type Dump struct {
	Workloads []any `json:"workloads"`
	Services  []any `json:"services"`
	Policies  []any `json:"policies"`
}
