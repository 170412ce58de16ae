package cluster

import (
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/api"
)

// Pod is a pod.
type Pod struct {
	Key
	UID            string
	Created        time.Time
	Node           string
	ServiceAccount string
	// IPs are all addresses of the pod; none before the network is there.
	IPs []netip.Addr
	// HostNetwork pods have their node's addresses.
	HostNetwork bool
	Ready       bool
	// Deleting pods have been asked to end.
	Deleting bool
	// Terminal pods have ended, and own their address no longer.
	Terminal bool
	// Redirected pods carry api.AnnotationRedirection, whatever its value.
	Redirected  bool
	Redirection string
	Labels      Labels
	// Controller is the owner that manages the pod; zero if none does.
	Controller Controller
	// Ports are the named TCP ports of its containers.
	Ports []NamedPort
	// Faults are what is malformed in the object, in the words of Fault.
	Faults []string
}

// Controller is the managing owner of a pod.
type Controller struct{ Kind, Name string }

// NamedPort is a container port that services refer to by name.
type NamedPort struct {
	Name string
	Port uint16
}

// ObjectKind is KindPod.
func (*Pod) ObjectKind() Kind { return KindPod }

// ObjectKey is namespace and name.
func (p *Pod) ObjectKey() Key { return p.Key }

// Present reports whether the pod has an address and has not ended.
func (p *Pod) Present() bool { return p != nil && !p.Terminal && len(p.IPs) > 0 }

// HasPlace reports whether the pod is found by its addresses: it is present, and they are not its node's.
func (p *Pod) HasPlace() bool { return p.Present() && !p.HostNetwork }

// Equal reports whether both are the same in every field.
func (p *Pod) Equal(o *Pod) bool {
	return p.Key == o.Key && p.UID == o.UID && p.Created.Equal(o.Created) && p.Node == o.Node && p.ServiceAccount == o.ServiceAccount &&
		slices.Equal(p.IPs, o.IPs) && p.HostNetwork == o.HostNetwork && p.Ready == o.Ready && p.Deleting == o.Deleting &&
		p.Terminal == o.Terminal && p.Redirected == o.Redirected && p.Redirection == o.Redirection &&
		p.Labels.Equal(o.Labels) && p.Controller == o.Controller && slices.Equal(p.Ports, o.Ports) &&
		slices.Equal(p.Faults, o.Faults)
}

// PodOf reduces a Kubernetes pod.
func PodOf(in *corev1.Pod) *Pod {
	p := &Pod{
		Key:            Key{in.Namespace, in.Name},
		UID:            string(in.UID),
		Created:        in.CreationTimestamp.Time,
		Node:           in.Spec.NodeName,
		ServiceAccount: in.Spec.ServiceAccountName,
		HostNetwork:    in.Spec.HostNetwork,
		Ready:          podReady(in),
		Deleting:       in.DeletionTimestamp != nil,
		Terminal:       in.Status.Phase == corev1.PodSucceeded || in.Status.Phase == corev1.PodFailed,
		Labels:         LabelsOf(in.Labels),
	}
	if p.ServiceAccount == "" {
		p.ServiceAccount = "default" // what the API server's admission would have written
	}
	p.Redirection, p.Redirected = in.Annotations[api.AnnotationRedirection]
	for _, ip := range in.Status.PodIPs {
		p.addIP(ip.IP)
	}
	if len(in.Status.PodIPs) == 0 && in.Status.PodIP != "" {
		p.addIP(in.Status.PodIP)
	}
	for _, owner := range in.OwnerReferences {
		if owner.Controller != nil && *owner.Controller {
			p.Controller = Controller{Kind: owner.Kind, Name: owner.Name}
		}
	}
	for _, c := range in.Spec.Containers {
		p.addPorts(c.Ports)
	}
	for _, c := range in.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			p.addPorts(c.Ports)
		}
	}
	return p
}

func (p *Pod) addIP(s string) {
	addr, fault := parseAddr("pod IP", s)
	if fault != "" {
		p.Faults = append(p.Faults, fault)
		return
	}
	if !slices.Contains(p.IPs, addr) {
		p.IPs = append(p.IPs, addr)
	}
}

func (p *Pod) addPorts(ports []corev1.ContainerPort) {
	for _, cp := range ports {
		if cp.Name == "" || !isTCP(cp.Protocol) {
			continue
		}
		port, fault := parsePort("container port "+cp.Name, cp.ContainerPort)
		if fault != "" {
			p.Faults = append(p.Faults, fault)
			continue
		}
		p.Ports = append(p.Ports, NamedPort{cp.Name, port})
	}
}

// Port returns the container port of that name.
func (p *Pod) Port(name string) (uint16, bool) {
	for _, np := range p.Ports {
		if np.Name == name {
			return np.Port, true
		}
	}
	return 0, false
}

func podReady(in *corev1.Pod) bool {
	for _, c := range in.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
