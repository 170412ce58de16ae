package api

// Labels and annotations that users and the mesh write on Kubernetes objects. The names are Istio ambient's.
const (
	// LabelDataplaneMode, on a Namespace or Pod, enrols pods: DataplaneModeAmbient or DataplaneModeNone. The pod's
	// label wins over its namespace's.
	LabelDataplaneMode = "istio.io/dataplane-mode"
	// DataplaneModeAmbient asks for capture.
	DataplaneModeAmbient = "ambient"
	// DataplaneModeNone opts a pod out in a namespace that is enrolled.
	DataplaneModeNone = "none"

	// AnnotationRedirection is the status that the CNI agent writes on a pod: RedirectionEnabled, RedirectionPending or
	// absent. The control plane tells peers to use HBONE for a pod exactly while it is present.
	AnnotationRedirection = "ambient.istio.io/redirection"
	// RedirectionEnabled says that the pod is captured and a node proxy serves it.
	RedirectionEnabled = "enabled"
	// RedirectionPending says that the pod is to be captured but was not proved to be.
	RedirectionPending = "pending"

	// AnnotationBypassInbound, on a Pod, leaves inbound traffic alone ("true"); outbound traffic is still captured.
	AnnotationBypassInbound = "ambient.istio.io/bypass-inbound-capture"
	// AnnotationDNSCapture, on a Pod, overrides the mesh-wide choice of DNS capture ("true" or "false").
	AnnotationDNSCapture = "ambient.istio.io/dns-capture"
	// AnnotationSidecarStatus marks a pod that has an Istio sidecar; it is never captured.
	AnnotationSidecarStatus = "sidecar.istio.io/status"
	// AnnotationTrafficDistribution, on a Namespace, Service or ServiceEntry: PreferClose, PreferSameZone,
	// PreferSameNode or Any. A Service's spec.trafficDistribution wins over it.
	AnnotationTrafficDistribution = "networking.istio.io/traffic-distribution"
	// LabelAutoAllocate, on a ServiceEntry, with the value "false": it gets no virtual addresses from the control plane.
	LabelAutoAllocate = "networking.istio.io/enable-autoallocate-ip"

	// LabelUseWaypoint names the waypoint Gateway of a Service, ServiceEntry, Pod, WorkloadEntry or Namespace.
	LabelUseWaypoint = "istio.io/use-waypoint"
	// LabelUseWaypointNamespace is the namespace of that Gateway where it is another one.
	LabelUseWaypointNamespace = "istio.io/use-waypoint-namespace"
	// LabelUseWaypointCanary, on a Service, ServiceEntry or Namespace, names a second waypoint, which takes AnnotationCanaryWeight per cent
	// of the connections. LabelUseWaypointCanaryNamespace is its namespace where it is another one.
	LabelUseWaypointCanary          = "istio.io/use-waypoint-canary"
	LabelUseWaypointCanaryNamespace = "istio.io/use-waypoint-canary-namespace"
	// AnnotationCanaryWeight, on the same object, is 0 to 100; 0 if it is not there.
	AnnotationCanaryWeight = "istio.io/use-waypoint-canary-weight"
	// UseWaypointNone, as the value of LabelUseWaypoint, opts out of the waypoint that the namespace names.
	UseWaypointNone = "none"
	// LabelWaypointFor, on a Gateway or GatewayClass, says which traffic is sent to it: that of services, the default, that of
	// pods' own addresses, both, or none.
	LabelWaypointFor    = "istio.io/waypoint-for"
	WaypointForService  = "service"
	WaypointForWorkload = "workload"
	WaypointForAll      = "all"
	WaypointForNone     = "none"
	// AnnotationWaypointRequired, on a Service or Namespace, with the value "true": traffic of the service takes its waypoint or is
	// refused, and its pods let nobody in but that waypoint. The Service's annotation wins over its namespace's.
	AnnotationWaypointRequired = "ambit.io/waypoint-required"
	// ConditionWaypointBound is the condition on Services, ServiceEntries and WorkloadEntries that says whether their traffic
	// takes the waypoint that they name.
	ConditionWaypointBound = "istio.io/WaypointBound"
	// LabelTunnel, on a Pod or WorkloadEntry, with the value "http": the workload speaks HBONE itself.
	LabelTunnel = "networking.istio.io/tunnel"
	// LabelGatewayManaged marks objects that the control plane made for a Gateway.
	LabelGatewayManaged = "gateway.istio.io/managed"
	// GatewayManagedWaypoint is the value of LabelGatewayManaged on those of a waypoint.
	GatewayManagedWaypoint = "istio.io-mesh-controller"
	// LabelGatewayName is the Gateway that an object was made for.
	LabelGatewayName = "gateway.networking.k8s.io/gateway-name"
	// LabelGatewayClassName is that Gateway's class.
	LabelGatewayClassName = "gateway.networking.k8s.io/gateway-class-name"
	// LabelDefaultsForClass, on a ConfigMap in the control plane's namespace, names the GatewayClass for whose Gateways it changes what is
	// made.
	LabelDefaultsForClass = "gateway.istio.io/defaults-for-class"
	// LabelRevision says which of several control planes an object is for; "" or RevisionDefault is this one.
	LabelRevision   = "istio.io/rev"
	RevisionDefault = "default"

	// LabelCanonicalName and LabelCanonicalRevision override the canonical service name and revision of a workload.
	LabelCanonicalName     = "service.istio.io/canonical-name"
	LabelCanonicalRevision = "service.istio.io/canonical-revision"
	// LabelNetwork, on the mesh's own namespace, names the network of this cluster's pods; empty by default.
	LabelNetwork = "topology.istio.io/network"
)

// Values of the app.kubernetes.io labels on everything that the chart installs, by which `ambit` and other installers
// find a mesh.
const (
	LabelPartOf    = "app.kubernetes.io/part-of"
	PartOf         = "ambit"
	LabelManagedBy = "app.kubernetes.io/managed-by"
	LabelVersion   = "app.kubernetes.io/version"
)
