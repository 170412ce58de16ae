package deployer

import (
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// Container is the name of the proxy's container. It is Istio's, so that what looks at proxies finds it.
const Container = "istio-proxy"

// user is whom the proxy runs as.
const user = 1337

// Files and folders in the container.
const (
	tokenDir  = "/var/run/secrets/tokens"
	tokenFile = "istio-token"
	rootsDir  = "/var/run/secrets/istio"
	crlDir    = "/var/run/secrets/istio-crl"
)

// tokenTTL is how long a token is good; kubelet renews it before.
const tokenTTL = 12 * time.Hour

// object is one thing that is made for a Gateway.
type object struct {
	gvr     schema.GroupVersionResource
	content *unstructured.Unstructured
}

// String returns "Kind name".
func (o object) String() string { return o.content.GetKind() + " " + o.content.GetName() }

// waypoint renders what is made for one Gateway.
type waypoint struct {
	Settings
	trustDomain string
	gateway     *cluster.Gateway
	// scaled waypoints have an autoscaler, which decides on replicas.
	scaled bool
}

// Invalid says why nothing can be made for a Gateway, "" if that is not so.
func (s Settings) Invalid(g *cluster.Gateway) string {
	if s.Image == "" {
		return "this control plane was installed without an image for waypoints (WAYPOINT_IMAGE)"
	}
	if errs := validation.IsDNS1035Label(g.Name); len(errs) > 0 {
		return fmt.Sprintf("its Service is to have the name of the Gateway, and cannot have %q: %s", g.Name, errs[0])
	}
	return ""
}

// Resources of what is not made for every Gateway.
var (
	budgets     = policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets")
	autoscalers = autoscalingv2.SchemeGroupVersion.WithResource("horizontalpodautoscalers")
)

// objects are all that a Gateway needs, in the order in which they are applied.
func (w waypoint) objects() ([]object, error) {
	core := schema.GroupVersion{Version: "v1"}
	type made struct {
		gvr   schema.GroupVersionResource
		typed any
	}
	all := []made{
		{core.WithResource("serviceaccounts"), w.serviceAccount()},
		{core.WithResource("services"), w.service()},
		{appsv1.SchemeGroupVersion.WithResource("deployments"), w.deployment()},
	}
	if w.Replicas > 1 {
		all = append(all, made{budgets, w.budget()})
	}
	if w.scaled {
		all = append(all, made{autoscalers, w.autoscaler()})
	}
	var out []object
	for _, o := range all {
		text, err := json.Marshal(o.typed)
		if err != nil {
			return nil, fmt.Errorf("render %T: %w", o.typed, err)
		}
		u := &unstructured.Unstructured{}
		if err := json.Unmarshal(text, &u.Object); err != nil {
			return nil, fmt.Errorf("render %T: %w", o.typed, err)
		}
		delete(u.Object, "status")
		prune(u.Object)
		out = append(out, object{o.gvr, u})
	}
	return out, nil
}

// prune takes out what a typed object has for nothing, so that it is not claimed.
func prune(m map[string]any) {
	for k, v := range m {
		switch v := v.(type) {
		case nil:
			delete(m, k)
		case map[string]any:
			if prune(v); len(v) == 0 && k != "emptyDir" {
				delete(m, k)
			}
		case []any:
			for _, item := range v {
				if item, ok := item.(map[string]any); ok {
					prune(item)
				}
			}
		}
	}
}

func (w waypoint) selector() map[string]string {
	return map[string]string{api.LabelGatewayName: w.gateway.Name}
}

// labels are those of all objects. The mesh's own win over the Gateway's.
func (w waypoint) labels() map[string]string {
	out := map[string]string{}
	maps.Copy(out, w.gateway.Labels)
	out[api.LabelGatewayManaged] = api.GatewayManagedWaypoint
	out[api.LabelGatewayName] = w.gateway.Name
	out[api.LabelGatewayClassName] = w.gateway.Class
	return out
}

func (w waypoint) meta() metav1.ObjectMeta {
	yes := true
	return metav1.ObjectMeta{
		Name: w.gateway.Name, Namespace: w.gateway.Namespace, Labels: w.labels(), Annotations: maps.Clone(w.gateway.Annotations),
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: "gateway.networking.k8s.io/v1", Kind: string(cluster.KindGateway), Name: w.gateway.Name, UID: types.UID(w.gateway.UID), Controller: &yes,
		}},
	}
}

func (w waypoint) serviceAccount() *corev1.ServiceAccount {
	return &corev1.ServiceAccount{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: w.meta()}
}

func (w waypoint) service() *corev1.Service {
	dual, near := corev1.IPFamilyPolicyPreferDualStack, corev1.ServiceTrafficDistributionPreferClose
	return &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: w.meta(),
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, IPFamilyPolicy: &dual, TrafficDistribution: &near, Selector: w.selector(),
			Ports: []corev1.ServicePort{
				{Name: "status-port", Port: api.PortReadiness, TargetPort: intstr.FromInt32(api.PortReadiness), Protocol: corev1.ProtocolTCP},
				{Name: "mesh", Port: api.PortHBONE, TargetPort: intstr.FromInt32(api.PortHBONE), Protocol: corev1.ProtocolTCP},
			},
		},
	}
}

// budget lets voluntary disruptions take all pods but one.
func (w waypoint) budget() *policyv1.PodDisruptionBudget {
	one := intstr.FromInt32(1)
	return &policyv1.PodDisruptionBudget{
		TypeMeta: metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"}, ObjectMeta: w.meta(),
		Spec: policyv1.PodDisruptionBudgetSpec{MinAvailable: &one, Selector: &metav1.LabelSelector{MatchLabels: w.selector()}},
	}
}

// deployment rolls such that no pod goes before another is ready in its place.
func (w waypoint) deployment() *appsv1.Deployment {
	surge, unavailable, grace := intstr.FromInt32(1), intstr.FromInt32(0), int64(w.Grace/time.Second)
	labels := w.labels()
	labels[api.LabelDataplaneMode], labels["sidecar.istio.io/inject"] = api.DataplaneModeNone, "false"
	labels[api.LabelCanonicalName], labels[api.LabelCanonicalRevision] = w.gateway.Name, "latest"
	if w.Version != "" && len(validation.IsValidLabelValue(w.Version)) == 0 {
		labels[api.LabelVersion] = w.Version // which a development build need not fit
	}
	annotations := map[string]string{
		"prometheus.io/scrape": "true", "prometheus.io/port": strconv.Itoa(api.PortStats), "prometheus.io/path": "/stats/prometheus",
	}
	maps.Copy(annotations, w.gateway.Annotations)
	if w.Build != "" {
		annotations["ambit.io/build"] = w.Build
	}
	no := false
	spec := corev1.PodSpec{
		ServiceAccountName: w.gateway.Name, AutomountServiceAccountToken: &no, TerminationGracePeriodSeconds: &grace,
		SecurityContext: &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
		Containers:      []corev1.Container{w.container()},
		Volumes:         w.volumes(),
	}
	for _, name := range w.PullSecrets {
		spec.ImagePullSecrets = append(spec.ImagePullSecrets, corev1.LocalObjectReference{Name: name})
	}
	for _, key := range []string{corev1.LabelHostname, corev1.LabelTopologyZone} {
		spec.TopologySpreadConstraints = append(spec.TopologySpreadConstraints, corev1.TopologySpreadConstraint{
			MaxSkew: 1, TopologyKey: key, WhenUnsatisfiable: corev1.ScheduleAnyway,
			LabelSelector: &metav1.LabelSelector{MatchLabels: w.selector()}, MatchLabelKeys: []string{appsv1.DefaultDeploymentUniqueLabelKey},
		})
	}
	replicas := &w.Replicas
	if w.scaled {
		replicas = nil
	}
	return &appsv1.Deployment{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"}, ObjectMeta: w.meta(),
		Spec: appsv1.DeploymentSpec{
			Replicas: replicas,
			Selector: &metav1.LabelSelector{MatchLabels: w.selector()},
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: annotations}, Spec: spec},
		},
	}
}

func (w waypoint) container() corev1.Container {
	id, no, yes := int64(user), false, true
	probe := func(period, failures int32) *corev1.Probe {
		return &corev1.Probe{
			ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz/ready", Port: intstr.FromInt32(api.PortReadiness)}},
			PeriodSeconds: period, TimeoutSeconds: 2, FailureThreshold: failures,
		}
	}
	return corev1.Container{
		Name: Container, Image: w.Image, ImagePullPolicy: w.PullPolicy, Args: []string{"proxy", "waypoint"}, Env: w.environment(),
		Ports: []corev1.ContainerPort{
			{Name: "mesh", ContainerPort: api.PortHBONE, Protocol: corev1.ProtocolTCP},
			{Name: "http-ready", ContainerPort: api.PortReadiness, Protocol: corev1.ProtocolTCP},
			{Name: "http-stats", ContainerPort: api.PortStats, Protocol: corev1.ProtocolTCP},
		},
		StartupProbe: probe(1, 60), ReadinessProbe: probe(2, 2), Resources: w.Resources,
		VolumeMounts: []corev1.VolumeMount{
			{Name: "istio-token", MountPath: tokenDir, ReadOnly: true}, {Name: "istiod-ca-cert", MountPath: rootsDir, ReadOnly: true},
			{Name: "istio-ca-crl", MountPath: crlDir, ReadOnly: true},
		},
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: &id, RunAsGroup: &id, RunAsNonRoot: &yes, AllowPrivilegeEscalation: &no, Privileged: &no, ReadOnlyRootFilesystem: &yes,
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
	}
}

func (w waypoint) environment() []corev1.EnvVar {
	var out []corev1.EnvVar
	for _, v := range [][2]string{
		{"POD_NAME", "metadata.name"}, {"POD_NAMESPACE", "metadata.namespace"}, {"INSTANCE_IP", "status.podIP"},
		{"SERVICE_ACCOUNT", "spec.serviceAccountName"}, {"NODE_NAME", "spec.nodeName"},
	} {
		// The API version is spelled out as the API server would fill it in.
		out = append(out, corev1.EnvVar{Name: v[0], ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: v[1]}}})
	}
	address := fmt.Sprintf("https://%s.%s.svc:%d", api.ControlPlaneService, w.Namespace, api.PortControlPlane)
	for _, v := range [][2]string{
		{"AMBIT_GATEWAY", w.gateway.Name}, {"XDS_ADDRESS", address}, {"CA_ADDRESS", address}, {"CLUSTER_ID", w.ClusterID}, {"CLUSTER_DOMAIN", w.ClusterDomain},
		{"TRUST_DOMAIN", w.trustDomain}, {"AMBIT_LOG", w.LogLevel}, {"LOG_FORMAT", "json"}, {"CRL_PATH", crlDir + "/" + api.CRLKey},
		{"TERMINATION_GRACE_PERIOD_SECONDS", strconv.Itoa(int(w.Grace / time.Second))},
	} {
		if v[1] != "" {
			out = append(out, corev1.EnvVar{Name: v[0], Value: v[1]})
		}
	}
	return out
}

func (w waypoint) volumes() []corev1.Volume {
	expires, yes := int64(tokenTTL/time.Second), true
	return []corev1.Volume{
		{Name: "istio-token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: api.TokenAudience, ExpirationSeconds: &expires, Path: tokenFile}}}}}},
		{Name: "istiod-ca-cert", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: w.RootCertConfigMap}}}},
		{Name: "istio-ca-crl", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: w.CRLConfigMap}, Optional: &yes}}},
	}
}
