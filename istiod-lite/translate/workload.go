package translate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// Labels from which a workload's canonical name and revision come, first match first.
const (
	labelAppName     = "app.kubernetes.io/name"
	labelAppVersion  = "app.kubernetes.io/version"
	labelApp         = "app"
	labelVersion     = "version"
	labelTemplate    = "pod-template-hash"
	latestRevision   = "latest"
	tunnelHTTP       = "http"
	endpointSliceGVK = "discovery.k8s.io/EndpointSlice"
)

// Attachment makes a workload an endpoint of a service.
type Attachment struct {
	Service *cluster.Service
	// Slice is where the endpoint comes from, nil if the service's selector picks the pod.
	Slice *cluster.EndpointSlice
}

// PodInput is a pod and what its workload depends on.
type PodInput struct {
	Pod *cluster.Pod
	// Node is the pod's node, nil while it is not known.
	Node *cluster.Node
	// Services are those that the pod is an endpoint of. Several of the same service add up.
	Services []Attachment
	// Entries are the ServiceEntries that it is an endpoint of.
	Entries []EntryAttachment
	// Policies are the "namespace/name" of authorisations that select the pod.
	Policies []string
	// Others are pods that have one of its addresses too.
	Others []*cluster.Pod
	// Waypoint is the decision on the pod's own.
	Waypoint Binding
}

// owned are the addresses that are the pod's and nobody else's. An address may be given to a new pod before the old one is
// gone from the API server: it is the one's that is not ending, else the younger one's.
func (in PodInput) owned() []netip.Addr {
	if !in.Pod.HasPlace() {
		return in.Pod.IPs
	}
	var out []netip.Addr
	for _, addr := range in.Pod.IPs {
		if !slices.ContainsFunc(in.Others, func(o *cluster.Pod) bool {
			return o.HasPlace() && slices.Contains(o.IPs, addr) && succeeds(o, in.Pod)
		}) {
			out = append(out, addr)
		}
	}
	return out
}

// succeeds reports whether a has the address that both claim.
func succeeds(a, b *cluster.Pod) bool {
	if a.Key == b.Key {
		return false
	}
	if a.Deleting != b.Deleting {
		return b.Deleting
	}
	return cmp.Or(b.Created.Compare(a.Created), a.Key.Compare(b.Key)) < 0
}

// PodUID is the key of a pod's workload.
func PodUID(m Mesh, pod cluster.Key) string {
	return m.ClusterID + "//Pod/" + pod.Namespace + "/" + pod.Name
}

// Pod translates a pod. The result is nil while the pod has no address, and after it has ended or another pod has its
// addresses.
func Pod(m Mesh, in PodInput) (*workload.Workload, []Problem) {
	p := in.Pod
	problems := Faults(p, p.Faults)
	if !p.Present() {
		return nil, problems
	}
	ips := in.owned()
	if len(ips) == 0 {
		return nil, problems
	}
	w := &workload.Workload{
		Uid:                   PodUID(m, p.Key),
		Name:                  p.Name,
		Namespace:             p.Namespace,
		Addresses:             addresses(ips),
		Network:               m.Network,
		TrustDomain:           m.trustDomain(),
		ServiceAccount:        unless(p.ServiceAccount, "default"),
		Node:                  p.Node,
		ClusterId:             m.clusterID(),
		AuthorizationPolicies: in.Policies,
		Locality:              locality(in.Node, ""),
		Services:              portLists(m, in.Services, p),
		Status:                workload.WorkloadStatus_UNHEALTHY,
		Waypoint:              in.Waypoint.Address,
	}
	if p.Ready && !p.Deleting {
		w.Status = workload.WorkloadStatus_HEALTHY
	}
	for _, at := range in.Entries {
		w.Services = at.addTo(w.Services)
	}
	if p.HostNetwork {
		w.NetworkMode = workload.NetworkMode_HOST_NETWORK
	}
	w.WorkloadName, w.WorkloadType = controllerOf(p)
	w.CanonicalName = cmp.Or(p.Labels.First(api.LabelCanonicalName, labelAppName, labelApp), w.WorkloadName)
	w.CanonicalRevision = cmp.Or(p.Labels.First(api.LabelCanonicalRevision, labelAppVersion, labelVersion), latestRevision)
	problems = append(problems, setTunnel(w, p)...)
	return w, problems
}

// setTunnel decides how peers reach the pod. The annotation alone, whatever its value, says that the pod is or was captured:
// peers that then speak HBONE are refused at worst, and never in plain.
func setTunnel(w *workload.Workload, p *cluster.Pod) []Problem {
	switch {
	case p.Labels.Get(api.LabelTunnel) == tunnelHTTP:
		w.TunnelProtocol, w.NativeTunnel = workload.TunnelProtocol_HBONE, true
	case p.HostNetwork:
		// Never captured: its network namespace is the node's.
	case p.Redirected:
		w.TunnelProtocol = workload.TunnelProtocol_HBONE
		if p.Redirection != api.RedirectionEnabled && p.Redirection != api.RedirectionPending {
			return []Problem{{p.ObjectKind(), p.Key, fmt.Sprintf("annotation %s is %q; the node agent writes %q or %q, and nobody else should",
				api.AnnotationRedirection, p.Redirection, api.RedirectionEnabled, api.RedirectionPending)}}
		}
	}
	return nil
}

// controllerOf names what manages a pod, as metrics group pods by it. Kubernetes names a Deployment's ReplicaSets by the
// Deployment and the hash of the template, and a CronJob's Jobs by the CronJob and the scheduled minute.
func controllerOf(p *cluster.Pod) (string, workload.WorkloadType) {
	name := p.Controller.Name
	switch p.Controller.Kind {
	case "ReplicaSet":
		if hash := p.Labels.Get(labelTemplate); hash != "" {
			if deployment, ok := strings.CutSuffix(name, "-"+hash); ok && deployment != "" {
				return deployment, workload.WorkloadType_DEPLOYMENT
			}
		}
	case "Job":
		if i := strings.LastIndexByte(name, '-'); i > 0 && isScheduledMinute(name[i+1:]) {
			return name[:i], workload.WorkloadType_CRONJOB
		}
		return name, workload.WorkloadType_JOB
	case "CronJob":
		return name, workload.WorkloadType_CRONJOB
	}
	return p.Name, workload.WorkloadType_POD
}

// isScheduledMinute reports whether s is the suffix that the CronJob controller gives to Jobs: minutes since 1970, which
// have had eight digits since 1989.
func isScheduledMinute(s string) bool {
	if len(s) < 8 {
		return false
	}
	return strings.Trim(s, "0123456789") == ""
}

// EndpointUID is the key of the workload of an endpoint that is no pod.
func EndpointUID(m Mesh, slice cluster.Key, addr netip.Addr) string {
	return m.ClusterID + "/" + endpointSliceGVK + "/" + slice.Namespace + "/" + slice.Name + "/" + addr.String()
}

// Endpoint translates an endpoint that is no pod, such as the API server's. It is found through its service only, never by
// its address, which may be a node's.
func Endpoint(m Mesh, at Attachment, e cluster.Endpoint, node *cluster.Node) *workload.Workload {
	s := at.Slice
	w := &workload.Workload{
		Uid:               EndpointUID(m, s.Key, e.Addr),
		Name:              s.Name,
		Namespace:         s.Namespace,
		Addresses:         addresses([]netip.Addr{e.Addr}),
		Network:           m.Network,
		TrustDomain:       m.trustDomain(),
		Node:              e.Node,
		ClusterId:         m.clusterID(),
		WorkloadName:      s.Name,
		WorkloadType:      workload.WorkloadType_POD,
		CanonicalName:     s.Service,
		CanonicalRevision: latestRevision,
		NetworkMode:       workload.NetworkMode_HOST_NETWORK,
		Locality:          locality(node, e.Zone),
		Services:          portLists(m, []Attachment{at}, nil),
		Status:            workload.WorkloadStatus_UNHEALTHY,
	}
	if e.Ready {
		w.Status = workload.WorkloadStatus_HEALTHY
	}
	return w
}

// portLists says for each service which port of the workload stands for which port of the service. Ports that the workload
// does not have are left out.
func portLists(m Mesh, attached []Attachment, pod *cluster.Pod) map[string]*workload.PortList {
	var out map[string]*workload.PortList
	for _, at := range attached {
		name := ServiceName(m, at.Service.Key)
		list := out[name]
		if list == nil {
			list = &workload.PortList{}
			if out == nil {
				out = make(map[string]*workload.PortList, len(attached))
			}
			out[name] = list
		}
		for _, sp := range at.Service.Ports {
			target, ok := targetPort(at, sp, pod)
			if !ok || slices.ContainsFunc(list.Ports, func(p *workload.Port) bool { return p.ServicePort == uint32(sp.Port) }) {
				continue
			}
			list.Ports = append(list.Ports, &workload.Port{
				ServicePort: uint32(sp.Port), TargetPort: uint32(target), AppProtocol: AppProtocol(sp)})
		}
	}
	return out
}

func targetPort(at Attachment, sp cluster.ServicePort, pod *cluster.Pod) (uint16, bool) {
	switch {
	case at.Slice != nil:
		for _, p := range at.Slice.Ports {
			if p.Name == sp.Name {
				return p.Port, true
			}
		}
		return 0, false
	case sp.TargetName != "":
		return pod.Port(sp.TargetName)
	}
	return sp.Target, true
}

// locality prefers the node's labels to the zone that an endpoint slice repeats.
func locality(n *cluster.Node, zone string) *workload.Locality {
	var l cluster.Locality
	if n != nil {
		l = n.Locality
	}
	l.Zone = cmp.Or(l.Zone, zone)
	if l == (cluster.Locality{}) {
		return nil
	}
	return &workload.Locality{Region: l.Region, Zone: l.Zone, Subzone: l.Subzone}
}

func addresses(in []netip.Addr) [][]byte {
	out := make([][]byte, len(in))
	for i, a := range in {
		out[i] = a.AsSlice()
	}
	return out
}
