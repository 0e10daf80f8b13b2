{{- define "deepsynth.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "deepsynth.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "deepsynth.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "deepsynth.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Takes (list $ COMPONENT). */ -}}
{{- define "deepsynth.selector" -}}
app.kubernetes.io/name: {{ include "deepsynth.name" (index . 0) }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "deepsynth.labels" -}}
{{ include "deepsynth.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end -}}

{{- /* Takes (list $ IMAGE). */ -}}
{{- define "deepsynth.image" -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ printf "%s@%s" $image.repository $image.digest | quote }}
{{- else -}}
{{ printf "%s:%s" $image.repository (default (index . 0).Chart.AppVersion $image.tag) | quote }}
{{- end -}}
{{- end -}}

{{- define "deepsynth.serviceAccount" -}}
{{- default (include "deepsynth.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{- define "deepsynth.adaptersClaim" -}}
{{- default (printf "%s-adapters" (include "deepsynth.fullname" .)) .Values.adapters.existingClaim -}}
{{- end -}}

{{- /* Fields of a pod that the service and the trainer share; all that the restricted pod security standard asks. */ -}}
{{- define "deepsynth.pod" -}}
serviceAccountName: {{ include "deepsynth.serviceAccount" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "deepsynth.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{- /* Takes (list RESOURCES GPU COUNT): the resources, with the GPUs among the limits. */ -}}
{{- define "deepsynth.resources" -}}
{{- $resources := deepCopy (index . 0) -}}
{{- $gpu := index . 1 -}}
{{- if $gpu.enabled -}}
{{- $limits := merge (dict $gpu.resource (index . 2)) (default dict $resources.limits) -}}
{{- $resources = set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- /* Takes (list NODE_SELECTOR TOLERATIONS AFFINITY GPU). */ -}}
{{- define "deepsynth.placement" -}}
{{- $gpu := index . 3 -}}
{{- with index . 0 }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- $tolerations := index . 1 -}}
{{- if $gpu.enabled }}
{{- $tolerations = append $tolerations (dict "key" $gpu.resource "operator" "Exists" "effect" "NoSchedule") }}
{{- with $gpu.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end }}
{{- with $tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with index . 2 }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* The volume of downloaded models. */ -}}
{{- define "deepsynth.modelsVolume" -}}
- name: models
{{- if .Values.models.existingClaim }}
  persistentVolumeClaim: {claimName: {{ .Values.models.existingClaim }}}
{{- else }}
  emptyDir: {sizeLimit: {{ .Values.models.size }}}
{{- end }}
{{- end -}}

{{- /* Takes (list $ COMPONENT NAME VALUES): a claim that outlives the release. */ -}}
{{- define "deepsynth.claim" -}}
{{- $values := index . 3 -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ index . 2 }}
  labels: {{- include "deepsynth.labels" . | nindent 4 }}
  annotations: {helm.sh/resource-policy: keep}
spec:
  accessModes: {{- toYaml $values.accessModes | nindent 4 }}
  {{- with $values.storageClass }}
  storageClassName: {{ . | quote }}
  {{- end }}
  resources: {requests: {storage: {{ $values.size }}}}
{{- end -}}

{{- define "deepsynth.dnsEgress" -}}
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- end -}}
