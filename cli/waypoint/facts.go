package waypoint

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/ztunnel"
)

// subject is an object whose label names a waypoint.
type subject struct {
	kind string // namespace, service, serviceentry, pod or workloadentry
	key         // of a namespace the namespace is empty
	// uses is the waypoint that it names, as a canary or else as the one for all, or for the rest, of its traffic.
	uses   key
	canary bool
	// shares says that it names two.
	shares bool
	// refused is the condition WaypointBound if that is False.
	refused *metav1.Condition
}

func (s subject) String() string {
	if s.namespace == "" {
		return s.kind + " " + s.name
	}
	return s.kind + " " + s.key.String()
}

// home is the namespace that a subject is in; a namespace is in itself.
func (s subject) home() string { return cmp.Or(s.namespace, s.name) }

// label is the command that sets labels of the subject, or takes them off.
func (s subject) label(change string) string {
	if s.namespace == "" {
		return fmt.Sprintf("kubectl label namespace %s %s", s.name, change)
	}
	return fmt.Sprintf("kubectl -n %s label %s %s %s", s.namespace, s.kind, s.name, change)
}

// by is the label by which it names the waypoint.
func (s subject) by() string {
	if s.canary {
		return api.LabelUseWaypointCanary
	}
	return api.LabelUseWaypoint
}

// used are the waypoints that an object names; zero where it names none, or says that it wants none.
type used struct{ first, canary key }

// usedBy are those that an object of a namespace names by its labels.
func usedBy(labels map[string]string, namespace string) used {
	named := func(name, in string) key {
		if labels[name] == "" || labels[name] == api.UseWaypointNone {
			return key{}
		}
		return key{cmp.Or(labels[in], namespace), labels[name]}
	}
	return used{
		named(api.LabelUseWaypoint, api.LabelUseWaypointNamespace),
		named(api.LabelUseWaypointCanary, api.LabelUseWaypointCanaryNamespace),
	}
}

// or completes what a service names by what its namespace does.
func (u used) or(labels map[string]string, namespace used) used {
	if _, own := labels[api.LabelUseWaypoint]; own {
		return u
	}
	return used{namespace.first, cmp.Or(u.canary, namespace.canary)}
}

// subjects are those that an object is.
func (u used) subjects(kind string, name key, refused *metav1.Condition) []subject {
	shares := u.first != (key{}) && u.canary != (key{}) && u.first != u.canary
	var out []subject
	if u.first != (key{}) {
		out = append(out, subject{kind: kind, key: name, uses: u.first, shares: shares, refused: refused})
	}
	if u.canary != (key{}) && u.canary != u.first {
		out = append(out, subject{kind: kind, key: name, uses: u.canary, canary: true, shares: shares, refused: refused})
	}
	return out
}

// facts are what advice is made of: who names which waypoint, and what is behind those services. Where a namespace was chosen,
// subjects of other namespaces are only those that name a waypoint in it.
type facts struct {
	namespace string          // that was chosen; empty: all
	exists    map[key]bool    // waypoints
	enrolled  map[string]bool // namespaces
	subjects  []subject
	// services are those whose traffic goes through a waypoint, by their own label or their namespace's, by waypoint.
	services map[key][]service
	accounts map[key]string // service accounts of waypoints
	pods     map[key][]netip.Addr
	// opened are connections of pods, where they were asked for.
	opened   []ztunnel.Opened
	policies policies
}

// service is a Service that uses a waypoint, with its pods.
type service struct {
	key
	uses  used
	vips  []string
	ports []corev1.ServicePort
	pods  []corev1.Pod
}

// of returns the subjects that name a waypoint, in order.
func (f *facts) of(waypoint key) []subject {
	return slices.DeleteFunc(slices.Clone(f.subjects), func(s subject) bool { return s.uses != waypoint })
}

// gather reads what there is to know about waypoints.
func (s *session) gather(ctx context.Context, waypoints []*gatewayv1.Gateway) (*facts, error) {
	f := &facts{
		namespace: s.namespace, exists: map[key]bool{}, enrolled: map[string]bool{}, services: map[key][]service{},
		accounts: map[key]string{}, pods: map[key][]netip.Addr{},
	}
	err := each(ctx, s.cluster.Dynamic.Resource(gateways), "", func(u *unstructured.Unstructured) {
		if class, _, _ := unstructured.NestedString(u.Object, "spec", "gatewayClassName"); s.classes[class] {
			f.exists[nameOf(u)] = true
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list Gateways: %w", err)
	}
	byNamespace, err := s.namespaces(ctx, f)
	if err != nil {
		return nil, err
	}
	if err := s.labelled(ctx, f); err != nil {
		return nil, err
	}
	for _, gateway := range waypoints {
		if traffic := trafficOf(gateway); traffic == api.WaypointForService || traffic == api.WaypointForAll {
			if err := s.behind(ctx, f, nameOf(gateway), byNamespace); err != nil {
				return nil, err
			}
		}
		s.account(ctx, f, nameOf(gateway))
	}
	for _, services := range f.services {
		for _, service := range services {
			for _, other := range []key{service.uses.first, service.uses.canary} {
				if _, known := f.accounts[other]; !known && f.exists[other] {
					s.account(ctx, f, other)
				}
			}
		}
	}
	if s.asks {
		s.connections(ctx, f, waypoints)
	}
	f.subjects = slices.DeleteFunc(f.subjects, func(subject subject) bool {
		return s.namespace != "" && subject.home() != s.namespace && subject.uses.namespace != s.namespace
	})
	slices.SortFunc(f.subjects, func(a, b subject) int {
		return cmp.Or(cmp.Compare(kindOrder[a.kind], kindOrder[b.kind]), a.compare(b.key))
	})
	f.policies, err = s.readPolicies(ctx, f)
	return f, err
}

// kindOrder is the order in which subjects are told: the wide ones first.
var kindOrder = map[string]int{"namespace": 0, "service": 1, "serviceentry": 2, "pod": 3, "workloadentry": 4}

// namespaces finds out which are enrolled and which name a waypoint; it returns the latter.
func (s *session) namespaces(ctx context.Context, f *facts) (map[string]used, error) {
	list, err := s.cluster.Kubernetes.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list Namespaces: %w", err)
	}
	byNamespace := map[string]used{}
	for _, ns := range list.Items {
		f.enrolled[ns.Name] = ns.Labels[api.LabelDataplaneMode] == api.DataplaneModeAmbient
		byNamespace[ns.Name] = usedBy(ns.Labels, ns.Name)
		f.subjects = append(f.subjects, byNamespace[ns.Name].subjects("namespace", key{name: ns.Name}, nil)...)
	}
	return byNamespace, nil
}

// labelled finds the objects that have a label of their own.
func (s *session) labelled(ctx context.Context, f *facts) error {
	both := api.LabelUseWaypointCanary + ",!" + api.LabelUseWaypoint // whose first one is the namespace's
	for _, kind := range []struct {
		name, group, version, plural string
		with                         []string
	}{
		{"service", "", "v1", "services", []string{api.LabelUseWaypoint, both}},
		{"pod", "", "v1", "pods", []string{api.LabelUseWaypoint}},
		{"serviceentry", "networking.istio.io", "v1", "serviceentries", []string{api.LabelUseWaypoint, both}},
		{"workloadentry", "networking.istio.io", "v1", "workloadentries", []string{api.LabelUseWaypoint}},
	} {
		for _, selector := range kind.with {
			err := each(ctx, s.cluster.Dynamic.Resource(resource(kind.group, kind.version, kind.plural)), selector, func(u *unstructured.Unstructured) {
				uses := usedBy(u.GetLabels(), u.GetNamespace())
				if len(kind.with) == 1 {
					uses.canary = key{} // it is for services only
				}
				f.subjects = append(f.subjects, uses.subjects(kind.name, nameOf(u), refused(u))...)
			})
			if err != nil {
				return fmt.Errorf("list %s: %w", kind.plural, err)
			}
		}
	}
	return nil
}

// refused is the condition with which the control plane says that an object's traffic does not take the waypoint that it names.
func refused(u *unstructured.Unstructured) *metav1.Condition {
	var status struct {
		Conditions []metav1.Condition `json:"conditions"`
	}
	fields, _, _ := unstructured.NestedMap(u.Object, "status")
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(fields, &status); err != nil {
		return nil // a pod's conditions have other fields
	}
	condition := meta.FindStatusCondition(status.Conditions, api.ConditionWaypointBound)
	if condition == nil || condition.Status != metav1.ConditionFalse {
		return nil
	}
	return condition
}

// behind finds the services that use a waypoint, and their pods.
func (s *session) behind(ctx context.Context, f *facts, waypoint key, byNamespace map[string]used) error {
	namespaces := map[string]bool{}
	for _, subject := range f.of(waypoint) {
		if subject.kind == "namespace" || subject.kind == "service" {
			namespaces[subject.home()] = true
		}
	}
	for namespace := range namespaces {
		list, err := s.cluster.Kubernetes.CoreV1().Services(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return fmt.Errorf("list Services of %s: %w", namespace, err)
		}
		for _, svc := range list.Items {
			uses := usedBy(svc.Labels, namespace).or(svc.Labels, byNamespace[namespace])
			// What was made for a waypoint is not itself behind one.
			if uses.first != waypoint && uses.canary != waypoint || len(svc.Spec.Selector) == 0 || svc.Labels[api.LabelGatewayManaged] != "" {
				continue
			}
			pods, err := s.cluster.Kubernetes.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: labels.SelectorFromSet(svc.Spec.Selector).String()})
			if err != nil {
				return fmt.Errorf("list Pods of Service %s/%s: %w", namespace, svc.Name, err)
			}
			f.services[waypoint] = append(f.services[waypoint], service{key{namespace, svc.Name}, uses, svc.Spec.ClusterIPs, svc.Spec.Ports, pods.Items})
		}
	}
	slices.SortFunc(f.services[waypoint], func(a, b service) int { return a.compare(b.key) })
	return nil
}

// connections asks node proxies for what pods have open to services that use a waypoint, if any is ready.
func (s *session) connections(ctx context.Context, f *facts, waypoints []*gatewayv1.Gateway) {
	if !slices.ContainsFunc(waypoints, func(g *gatewayv1.Gateway) bool { return isProgrammed(g) && len(f.services[nameOf(g)]) > 0 }) {
		return
	}
	var err error
	if f.opened, err = ztunnel.Connections(ctx, s.cluster, s.mesh); err != nil {
		s.env.Notef("Note: which connections stay at layer 4 until they end is not known of all: %v", err)
	}
}

// account finds out as whom, and from where, a waypoint calls.
func (s *session) account(ctx context.Context, f *facts, name key) {
	f.accounts[name] = name.name
	pods, err := s.cluster.Kubernetes.CoreV1().Pods(name.namespace).List(ctx, metav1.ListOptions{
		LabelSelector: labels.Set{api.LabelGatewayName: name.name}.String(),
	})
	if err != nil {
		return // no pod yet is as good
	}
	for _, pod := range pods.Items {
		f.accounts[name] = cmp.Or(pod.Spec.ServiceAccountName, name.name)
		for _, ip := range append(pod.Status.PodIPs, corev1.PodIP{IP: pod.Status.PodIP}) {
			if addr, err := netip.ParseAddr(ip.IP); err == nil {
				f.pods[name] = append(f.pods[name], addr)
			}
		}
	}
}
